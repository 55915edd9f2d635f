//! Connections that show whether traffic is captured: made as the application or as the proxy would make them, and seen
//! to arrive where the rules lead.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::rules::{Family, Identity, Selection, Spec};
use crate::net::interface::local_addresses;
use crate::net::socket::{INBOUND_SOURCE_V6, ListenOptions, listen, original_dst_std};

/// What a probe showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "kebab-case")]
pub enum Outcome {
    /// It arrived at the proxy's port; the text says how this was seen.
    Captured(String),
    /// It didn't.
    NotCaptured(String),
    /// The host has no route there, so that nothing can leave uncaptured either.
    NoRoute(String),
    /// Not tried.
    Skipped(String),
}

/// Connects as an application would to an address that nobody has, and looks whether the outbound port gets it.
pub(super) fn outbound(spec: &Spec, family: Family) -> Outcome {
    let Some(target) = outbound_target(spec, family) else {
        return Outcome::Skipped(format!("no {family} destination is included"));
    };
    let Some(caller) = Caller::application(spec) else {
        return Outcome::Skipped("can't become a user other than the proxy's: needs CAP_SETUID".to_owned());
    };
    probe(&caller, target, spec.outbound_port)
}

/// Connects as the proxy would for an application that calls its own service, to an own address of the host, and looks
/// whether the inbound port gets it.
pub(super) fn to_self(spec: &Spec, family: Family) -> Outcome {
    let own = local_addresses().unwrap_or_default().into_iter().find(|&address| usable(address, family));
    let Some(address) = own else {
        return Outcome::Skipped(format!("the host has no {family} address but loopback"));
    };
    let Some(target) = inbound_port(spec, address).map(|port| SocketAddr::new(address, port)) else {
        return Outcome::Skipped("no inbound port is included".to_owned());
    };
    let Some(caller) = Caller::proxy(spec) else {
        return Outcome::Skipped("the proxy has no identity".to_owned());
    };
    probe(&caller, target, spec.inbound_port)
}

/// Addresses for documentation (RFC 5737, RFC 3849), which no network routes to anybody.
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// Where the search for a port that the rules don't exclude begins: assigned to nothing (RFC 6335).
const FIRST_PORT: u16 = 81;
/// A captured connection is accepted on this host, at once.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `nobody`, and another for the case that the proxy is nobody.
const STRANGERS: [u32; 2] = [65_534, 65_533];

fn outbound_target(spec: &Spec, family: Family) -> Option<SocketAddr> {
    let address = match &spec.include_outbound_cidrs {
        Selection::All if family == Family::V4 => NOBODY_V4,
        Selection::All => NOBODY_V6,
        Selection::Only(nets) => {
            nets.iter().filter(|net| family.has(net)).find_map(|net| net.hosts().next())?
        }
    };
    if spec.exclude_outbound_cidrs.iter().any(|net| net.contains(&address)) {
        return None;
    }
    let port = (FIRST_PORT..).find(|port| !spec.exclude_outbound_ports.contains(port))?;
    Some(SocketAddr::new(address, port))
}

/// An included port on which nobody listens, if possible, so that only the rules can make a connection succeed.
fn inbound_port(spec: &Spec, address: IpAddr) -> Option<u16> {
    let excluded = spec.excluded_inbound_ports();
    let fits = |port: &u16| !excluded.contains(port);
    match &spec.include_inbound_ports {
        Selection::Only(ports) => ports.iter().copied().find(fits),
        Selection::All => (0..8)
            .filter_map(|_| TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr()).ok())
            .map(|free| free.port())
            .find(fits),
    }
}

fn usable(address: IpAddr, family: Family) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == INBOUND_SOURCE_V6,
    };
    Family::of(address) == family && !address.is_loopback() && !special
}

/// Stands for the proxy at `port` if it isn't running, connects, and judges.
fn probe(caller: &Caller, target: SocketAddr, port: u16) -> Outcome {
    // Redirection of a connection that is made on this host leads to the loopback address.
    let loopback = match target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let stand_in = match listen(SocketAddr::new(loopback, port), ListenOptions::default()) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) => return Outcome::Skipped(format!("can't listen on {loopback} port {port}: {error}")),
    };
    if let Err(error) = route_to(target) {
        return Outcome::NoRoute(format!("to {target}: {error}"));
    }
    match (caller.connect(target), stand_in) {
        (Ok(client), Some(listener)) => arrived(&listener, &client, target, port),
        // Nobody is at the target, so a proxy that has the port must have got it.
        (Ok(_), None) => Outcome::Captured(format!("to {target}: accepted, by whoever has port {port}")),
        (Err(error), _) => Outcome::NotCaptured(format!("to {target} as {caller}: {error}")),
    }
}

/// Looks for `client`'s connection among those that wait at the stand-in.
fn arrived(listener: &TcpListener, client: &TcpStream, target: SocketAddr, port: u16) -> Outcome {
    let local = client.local_addr().ok();
    // Other applications may have been captured meanwhile; they would have been refused without the stand-in too.
    while let Ok((stream, peer)) = listener.accept() {
        if Some(peer) != local {
            continue;
        }
        return match original_dst_std(&stream) {
            Some(original) if original == target => Outcome::Captured(format!(
                "to {target}: arrived at port {port} with its original destination"
            )),
            original => Outcome::NotCaptured(format!(
                "to {target}: arrived at port {port}, but with original destination {original:?}; is connection \
                 tracking on?"
            )),
        };
    }
    Outcome::NotCaptured(format!("to {target}: somebody else than port {port} accepted it"))
}

/// Connecting a UDP socket looks up the route and sends nothing. A TCP error wouldn't tell: a router far away may say
/// "unreachable" too, and then the connection has left uncaptured.
fn route_to(target: SocketAddr) -> io::Result<()> {
    let unspecified = match target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((unspecified, 0))?.connect(target)
}

/// As whom a probe connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caller {
    uid: Option<u32>,
    gid: Option<u32>,
    mark: Option<u32>,
}

impl Caller {
    /// Somebody whom the rules don't take for the proxy.
    fn application(spec: &Spec) -> Option<Self> {
        let stranger =
            |taken: fn(u32) -> Identity| STRANGERS.into_iter().find(|&id| !spec.proxy.contains(&taken(id)));
        let stranger = Self { uid: stranger(Identity::Uid), gid: stranger(Identity::Gid), mark: None };
        let unchanged = Self { uid: None, gid: None, mark: None };
        [stranger, unchanged].into_iter().find(|caller| caller.is_application(spec) && caller.is_possible())
    }

    /// The proxy, by the first thing that it is known by.
    fn proxy(spec: &Spec) -> Option<Self> {
        let nothing = Self { uid: None, gid: None, mark: None };
        let caller = match *spec.proxy.first()? {
            Identity::Uid(uid) => Self { uid: Some(uid), ..nothing },
            Identity::Gid(gid) => Self { gid: Some(gid), ..nothing },
            Identity::Mark(mark) => Self { mark: Some(mark), ..nothing },
        };
        Some(caller)
    }

    fn is_application(&self, spec: &Spec) -> bool {
        let uid = self.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let gid = self.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        spec.proxy.iter().all(|&known| known != Identity::Uid(uid) && known != Identity::Gid(gid))
    }

    fn is_possible(self) -> bool {
        std::thread::spawn(move || self.become_it()).join().is_ok_and(|result| result.is_ok())
    }

    /// On a thread of its own: user and group are set for that thread alone, as the kernel allows, and end with it.
    fn connect(self, target: SocketAddr) -> io::Result<TcpStream> {
        let connecting = std::thread::spawn(move || {
            // The owner that rules look at is the thread's at the time when the socket is made.
            self.become_it()?;
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            if let Some(mark) = self.mark {
                socket.set_mark(mark)?;
            }
            socket.connect_timeout(&target.into(), TIMEOUT)?;
            Ok(socket.into())
        });
        connecting.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    }

    /// For the current thread only.
    fn become_it(self) -> io::Result<()> {
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        if let Some(gid) = self.gid.map(Gid::from_raw) {
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
        }
        if let Some(uid) = self.uid.map(Uid::from_raw) {
            set_thread_res_uid(uid, uid, uid)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.uid, self.gid, self.mark) {
            (Some(uid), _, _) => Identity::Uid(uid).fmt(f),
            (_, Some(gid), _) => Identity::Gid(gid).fmt(f),
            (_, _, Some(mark)) => Identity::Mark(mark).fmt(f),
            _ => write!(f, "uid {}", rustix::process::geteuid().as_raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::spec;
    use super::*;

    #[test]
    fn targets_are_captured_ones() {
        assert_eq!(outbound_target(&spec(), Family::V4), Some("192.0.2.1:81".parse().unwrap()));
        assert_eq!(outbound_target(&spec(), Family::V6), Some("[2001:db8::1]:81".parse().unwrap()));
        let narrow = Spec {
            include_outbound_cidrs: Selection::Only(vec!["10.1.0.0/16".parse().unwrap()]),
            exclude_outbound_ports: vec![81, 82],
            ..spec()
        };
        assert_eq!(outbound_target(&narrow, Family::V4), Some("10.1.0.1:83".parse().unwrap()));
        assert_eq!(outbound_target(&narrow, Family::V6), None);
        let everything = Spec { exclude_outbound_cidrs: vec!["0.0.0.0/0".parse().unwrap()], ..spec() };
        assert_eq!(outbound_target(&everything, Family::V4), None);
    }

    #[test]
    fn the_application_is_never_the_proxy() {
        let nobody = Spec { proxy: vec![Identity::Uid(65_534), Identity::Gid(65_534)], ..spec() };
        let caller = Caller::application(&nobody).unwrap();
        assert!(caller.is_application(&nobody) && caller.uid != Some(65_534) && caller.gid != Some(65_534));
    }

    #[test]
    fn without_rules_nothing_is_captured() {
        let port = listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap();
        let target = port.local_addr().unwrap();
        let stand_in = listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap();
        let client = TcpStream::connect(target).unwrap();
        let outcome = arrived(&stand_in, &client, target, stand_in.local_addr().unwrap().port());
        assert!(matches!(outcome, Outcome::NotCaptured(_)), "{outcome:?}");
    }
}
