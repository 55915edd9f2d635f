//! TCP sockets as the proxy wants them: listening, connecting, and where a redirected connection was going.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::net::sockopt;
use smallvec::SmallVec;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// How a listening socket differs from a plain one.
#[derive(Debug, Clone, Copy)]
pub struct ListenOptions {
    /// Connections that the kernel completes before they are accepted; it caps this at `net.core.somaxconn`.
    pub backlog: i32,
    /// `IP_TRANSPARENT`, for TPROXY; needs `CAP_NET_ADMIN`.
    pub transparent: bool,
    /// `SO_REUSEPORT`: several sockets, between which the kernel shares out connections.
    pub reuse_port: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096, transparent: false, reuse_port: false }
    }
}

/// Listens on `address`, with `TCP_NODELAY` and [`Keepalive`] for what is accepted. `[::]` takes IPv4 as well, and becomes `0.0.0.0` on a host without IPv6.
///
/// The socket is non-blocking, as `tokio::net::TcpListener::from_std` asks for.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    match listen_exactly(address, options) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {
            listen_exactly(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), options)
        }
        result => result,
    }
}

/// Listens on both loopback addresses at one port; a host without IPv6 has one socket only. Port 0 is chosen once for both.
///
/// Two sockets rather than one because a loopback address is of one family, and because redirection of a local
/// connection leads to the loopback address of its family.
pub fn listen_loopback(port: u16, options: ListenOptions) -> io::Result<SmallVec<[TcpListener; 2]>> {
    let v4 = listen_exactly((Ipv4Addr::LOCALHOST, port).into(), options)?;
    let port = v4.local_addr()?.port();
    let mut listeners = SmallVec::new();
    listeners.push(v4);
    match listen_exactly((Ipv6Addr::LOCALHOST, port).into(), options) {
        Ok(v6) => listeners.push(v6),
        Err(error) if lacks_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

/// Connects, with `TCP_NODELAY`, and `SO_MARK` (needs `CAP_NET_ADMIN`) if the interception rules know the proxy by it.
///
/// No timeout of its own: the kernel's is over two minutes, so the caller bounds it. To be boxed by the caller where a
/// hot future would carry it.
pub async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    connect_from(None, address, mark).await
}

/// As [`connect`], from a chosen local address. See [`to_own_application`] for who needs that.
pub async fn connect_from(
    source: Option<IpAddr>,
    address: SocketAddr,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// The source address from which the inbound side reaches its own application under interception, `to` being an
/// address of this host: the rules let connections from here pass, while any other connection of the proxy to an own
/// address is a call of the application to itself, which goes through the inbound side. The addresses are Istio's;
/// `writ intercept install` puts the IPv6 one on the loopback interface, where all of 127/8 is already.
pub const fn to_own_application(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => IpAddr::V4(INBOUND_SOURCE_V4),
        IpAddr::V6(_) => IpAddr::V6(INBOUND_SOURCE_V6),
    }
}

/// See [`to_own_application`].
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// See [`to_own_application`].
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Where the client of a redirected connection wanted to go; `None` if the connection wasn't redirected.
pub fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    original_dst_of(SockRef::from(stream), canonical(stream.local_addr().ok()?))
}

fn original_dst_of(socket: SockRef<'_>, local: SocketAddr) -> Option<SocketAddr> {
    // A dual-stack socket shows IPv4 as v4-mapped IPv6, but connection tracking has it under IPv4.
    let original: SocketAddr = match local {
        SocketAddr::V4(_) => sockopt::ip_original_dst(&*socket).ok()?.into(),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(&*socket).ok()?.into(),
    };
    // A tracked connection that nobody redirected has its own local address as original destination.
    let same = original.ip() == local.ip() && original.port() == local.port();
    (!same).then_some(original)
}

/// As [`original_dst`], for a blocking socket.
pub(crate) fn original_dst_std(stream: &std::net::TcpStream) -> Option<SocketAddr> {
    original_dst_of(SockRef::from(stream), canonical(stream.local_addr().ok()?))
}

/// A v4-mapped address (`::ffff:192.0.2.1`) as the IPv4 address that it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    v6.ip().to_ipv4_mapped().map_or(address, |v4| SocketAddr::new(v4.into(), v6.port()))
}

/// Makes dropping the connection reset it, so that the peer doesn't take a failure for an orderly end.
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Probes by which the kernel notices a peer that went away without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub after: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is reset.
    pub probes: u32,
}

impl Keepalive {
    /// Sets it on a connection, or on a listener for those that it accepts. Times are rounded to seconds by the kernel.
    pub fn apply<'s>(self, socket: impl Into<SockRef<'s>>) -> io::Result<()> {
        let keepalive =
            TcpKeepalive::new().with_time(self.after).with_interval(self.interval).with_retries(self.probes);
        socket.into().set_tcp_keepalive(&keepalive)
    }
}

impl Default for Keepalive {
    /// Three minutes to the first probe, then nine in fifteen-second steps: under the 350 s after which common cloud
    /// load balancers forget a connection.
    fn default() -> Self {
        Self { after: Duration::from_secs(180), interval: Duration::from_secs(15), probes: 9 }
    }
}

fn listen_exactly(address: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // So that a restart isn't refused while connections of the previous process linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    if options.transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    // The kernel gives them to whatever is accepted, which then needs no call of its own.
    socket.set_tcp_nodelay(true)?;
    Keepalive::default().apply(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// IPv6 compiled out or disabled for the host (EAFNOSUPPORT), or for the interface (EADDRNOTAVAIL).
fn lacks_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokio_listener(address: &str) -> tokio::net::TcpListener {
        let listener = listen(address.parse().unwrap(), ListenOptions::default()).unwrap();
        tokio::net::TcpListener::from_std(listener).unwrap()
    }

    #[tokio::test]
    async fn unspecified_v6_takes_both_families() {
        let listener = tokio_listener("[::]:0");
        let port = listener.local_addr().unwrap().port();
        for target in [(IpAddr::from(Ipv4Addr::LOCALHOST), port), (Ipv6Addr::LOCALHOST.into(), port)] {
            let client = connect(target.into(), None).await.unwrap();
            let (server, peer) = listener.accept().await.unwrap();
            assert!(client.nodelay().unwrap());
            assert_eq!(canonical(peer), client.local_addr().unwrap());
            assert_eq!(canonical(server.local_addr().unwrap()).ip(), target.0);
        }
    }

    #[test]
    fn loopback_shares_a_port() {
        let listeners = listen_loopback(0, ListenOptions::default()).unwrap();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert!(ports.iter().all(|&port| port == ports[0] && port != 0), "{ports:?}");
    }

    #[tokio::test]
    async fn source_address_is_honoured() {
        let listener = tokio_listener("127.0.0.1:0");
        let address = listener.local_addr().unwrap();
        let source = to_own_application(address.ip());
        let client = connect_from(Some(source), address, None).await.unwrap();
        assert_eq!(client.local_addr().unwrap().ip(), source);
    }

    #[tokio::test]
    async fn direct_connection_has_no_original_destination() {
        let listener = tokio_listener("[::]:0");
        let port = listener.local_addr().unwrap().port();
        let _client = connect((Ipv4Addr::LOCALHOST, port).into(), None).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(original_dst(&server), None);
    }

    #[tokio::test]
    async fn an_accepted_connection_has_what_its_listener_was_given() {
        let listener = tokio_listener("127.0.0.1:0");
        let _client = connect(listener.local_addr().unwrap(), None).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert!(server.nodelay().unwrap());
        let (socket, keepalive) = (SockRef::from(&server), Keepalive::default());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive.after);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), keepalive.probes);
    }

    #[test]
    fn canonical_keeps_the_scope_of_link_local_addresses() {
        let scoped: SocketAddr = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(canonical(scoped), scoped);
        assert_eq!(canonical("[::ffff:192.0.2.1]:80".parse().unwrap()), "192.0.2.1:80".parse().unwrap());
    }
}
