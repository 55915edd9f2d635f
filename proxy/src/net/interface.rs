//! The addresses of this network namespace, over rtnetlink, and the guard against connecting to oneself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, recv, sendto,
    socket_with,
};

/// The ports on which this proxy listens: a connection to one of them at an address of this host would come back to it.
#[derive(Debug)]
pub struct OwnListeners {
    /// A bit for each.
    ports: [AtomicU64; 1024],
}

impl OwnListeners {
    /// Of the ports given.
    pub fn new(ports: impl IntoIterator<Item = u16>) -> Self {
        let own = Self { ports: [const { AtomicU64::new(0) }; 1024] };
        ports.into_iter().for_each(|port| own.open(port));
        own
    }

    /// It listens there from now on.
    pub fn open(&self, port: u16) {
        self.ports[usize::from(port >> 6)].fetch_or(1 << (port & 63), Ordering::Relaxed);
    }

    /// It listens there no more.
    pub fn close(&self, port: u16) {
        self.ports[usize::from(port >> 6)].fetch_and(!(1 << (port & 63)), Ordering::Relaxed);
    }

    fn listens(&self, port: u16) -> bool {
        self.ports[usize::from(port >> 6)].load(Ordering::Relaxed) & 1 << (port & 63) != 0
    }

    /// Whether `destination` leads back to this proxy. Asks the kernel only if the port fits, so that an address that
    /// was added a moment ago counts; if the kernel doesn't answer, an address that fits by its port does.
    pub fn leads_back(&self, destination: SocketAddr) -> bool {
        self.listens(destination.port()) && is_local(destination.ip()).unwrap_or(true)
    }
}

/// Whether an address is one of this network namespace, loopback and the unspecified address included.
pub fn is_local(address: IpAddr) -> io::Result<bool> {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return Ok(true);
    }
    Ok(local_addresses()?.contains(&address))
}

/// Every address assigned to an interface of this network namespace.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let socket = route_socket()?;
    send(&socket, &Request::new(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 0, 0, 0).finish())?;
    let mut addresses = Vec::new();
    // A dump comes in datagrams of at most 32 KiB when the reader offers that much.
    let mut datagram = vec![0; 32 * 1024];
    loop {
        let (count, _) = recv(&socket, datagram.as_mut_slice(), RecvFlags::empty())?;
        for message in messages(&datagram[..count.min(datagram.len())]) {
            match message.kind {
                NLMSG_DONE => return Ok(addresses),
                NLMSG_ERROR => return acknowledged(message.payload).map(|()| addresses),
                RTM_NEWADDR => addresses.extend(assigned_address(message.payload)),
                _ => {}
            }
        }
    }
}

/// Puts [`INBOUND_SOURCE_V6`](super::socket::INBOUND_SOURCE_V6) on the loopback interface, or takes it away. Well
/// if it is there already, or gone already. Needs `CAP_NET_ADMIN`.
pub(super) fn assign_inbound_source_v6(present: bool) -> io::Result<()> {
    let (kind, flags) = match present {
        true => (RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
        false => (RTM_DELADDR, NLM_F_REQUEST | NLM_F_ACK),
    };
    let address = super::socket::INBOUND_SOURCE_V6.octets();
    let mut request = Request::new(kind, flags, AF_INET6, 128, LOOPBACK_INDEX);
    // Else it is tentative for a moment, and a connection from it would fail.
    request.without_duplicate_detection();
    request.attribute(IFA_LOCAL, &address);
    request.attribute(IFA_ADDRESS, &address);
    let socket = route_socket()?;
    send(&socket, &request.finish())?;
    let mut datagram = [0; 4096];
    let (count, _) = recv(&socket, &mut datagram, RecvFlags::empty())?;
    let answer = messages(&datagram[..count.min(datagram.len())]).find(|m| m.kind == NLMSG_ERROR);
    use rustix::io::Errno;
    match answer.map_or(Ok(()), |message| acknowledged(message.payload)) {
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::EXIST) if present => Ok(()),
            Some(Errno::ADDRNOTAVAIL) if !present => Ok(()),
            _ => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

// linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const AF_INET6: u8 = 10;
/// `nlmsghdr`: length, type, flags, sequence, port id.
const MESSAGE_HEADER: usize = 16;
/// `ifaddrmsg`: family, prefix length, flags, scope, interface index.
const ADDRESS_HEADER: usize = 8;
const ATTRIBUTE_HEADER: usize = 4;
/// The kernel makes the loopback interface first in every namespace.
const LOOPBACK_INDEX: u32 = 1;

fn route_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

fn send(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    sendto(socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

/// A request about addresses.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, family: u8, prefix: u8, interface: u32) -> Self {
        let mut bytes = vec![0; MESSAGE_HEADER + ADDRESS_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[16] = family;
        bytes[17] = prefix;
        bytes[20..24].copy_from_slice(&interface.to_ne_bytes());
        Self(bytes)
    }

    /// The address is ours alone, and can be used at once.
    fn without_duplicate_detection(&mut self) {
        self.0[18] = IFA_F_NODAD;
    }

    /// `value` must fill whole words, as addresses do.
    fn attribute(&mut self, kind: u16, value: &[u8; 16]) {
        const LENGTH: u16 = (ATTRIBUTE_HEADER + 16) as u16;
        self.0.extend(LENGTH.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

struct Message<'a> {
    kind: u16,
    payload: &'a [u8],
}

fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let message = datagram.get(..length)?;
        let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
        let payload = message.get(MESSAGE_HEADER..)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, payload })
    })
}

/// The error number in an answer; zero is an acknowledgement.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The interface's own address: `IFA_LOCAL`, which on a point-to-point link differs from `IFA_ADDRESS`, the peer's.
fn assigned_address(payload: &[u8]) -> Option<IpAddr> {
    let attributes = || attributes(payload.get(ADDRESS_HEADER..).unwrap_or_default());
    let find = |kind| attributes().find(|&(found, _)| found == kind).map(|(_, value)| value);
    let value = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|v6| Ipv6Addr::from(v6).into())
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[length_low, length_high, kind_low, kind_high] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind_low, kind_high]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_of_this_host_are_the_ones_that_can_be_bound() {
        for address in local_addresses().unwrap() {
            let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !link_local {
                std::net::UdpSocket::bind((address, 0)).unwrap();
            }
            assert!(is_local(address).unwrap());
        }
        assert!(!is_local("192.0.2.1".parse().unwrap()).unwrap());
        assert!(!is_local("2001:db8::1".parse().unwrap()).unwrap());
    }

    #[test]
    fn only_own_port_at_own_address_leads_back() {
        let own = OwnListeners::new([15001, 15006]);
        let table = [
            ("127.0.0.1:15001", true),
            ("127.9.9.9:15006", true),
            ("[::1]:15006", true),
            ("[::ffff:127.0.0.1]:15006", true),
            ("0.0.0.0:15001", true),
            ("127.0.0.1:80", false),
            ("192.0.2.1:15001", false),
        ];
        for (destination, expected) in table {
            assert_eq!(own.leads_back(destination.parse().unwrap()), expected, "{destination}");
        }
        own.close(15001);
        own.open(80);
        let leads_back = |destination: &str| own.leads_back(destination.parse().unwrap());
        assert!(
            !leads_back("127.0.0.1:15001") && leads_back("127.0.0.1:80") && leads_back("127.0.0.1:15006")
        );
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = (assigned_address(message.payload), acknowledged(message.payload));
            }
        }

        #[test]
        fn messages_terminate(kind: u16, length in 0_u32..64) {
            let mut bytes = vec![0; 64];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            prop_assert!(messages(&bytes).take(100).count() <= 4);
        }
    }
}
