//! What is redirected, as data: a [`Spec`] as the operator gave it, and the rules that it means for either back end.
//!
//! The rules are those of Istio's sidecar (istio/istio `tools/istio-iptables`), so that what is known about its capture
//! holds here, with one difference: inbound exclusions also hold for an application's calls to itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::socket::to_own_application;

/// What is to be redirected, and by what the proxy's own connections are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Where the proxy takes what the application sends.
    pub outbound_port: u16,
    /// Where the proxy takes what others send to the application.
    pub inbound_port: u16,
    /// The proxy's own connections, which must pass: any of these.
    pub proxy: Vec<Identity>,
    /// Inbound ports that are captured, before exclusions.
    pub include_inbound_ports: Selection<u16>,
    /// Inbound ports that aren't; the proxy's two ports never are.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destinations that are captured, before exclusions.
    pub include_outbound_cidrs: Selection<IpNet>,
    /// Destinations that aren't.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Destination ports that aren't.
    pub exclude_outbound_ports: Vec<u16>,
}

/// By what a connection of the proxy is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// User id of the process.
    Uid(u32),
    /// Group id of the process.
    Gid(u32),
    /// `SO_MARK` on the socket.
    Mark(u32),
}

/// All, written `*`, or a list, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection<T> {
    /// Everything.
    All,
    /// These only.
    Only(Vec<T>),
}

/// A specification that can't be installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The proxy would capture itself.
    #[error(
        "nothing tells the proxy's own connections apart, so they would be redirected to it for ever; give --uid, --gid or --mark"
    )]
    NoIdentity,
    /// The listeners can't share a port.
    #[error("inbound and outbound port are both {0}; they must differ")]
    SamePort(u16),
    /// Port 0.
    #[error("port 0 isn't a port: check --{0}")]
    PortZero(&'static str),
}

impl Spec {
    /// Checks what the rules rely on.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.proxy.is_empty() {
            return Err(SpecError::NoIdentity);
        }
        if self.outbound_port == self.inbound_port {
            return Err(SpecError::SamePort(self.inbound_port));
        }
        let included = match &self.include_inbound_ports {
            Selection::All => &[][..],
            Selection::Only(ports) => ports,
        };
        for (flag, ports) in [
            ("outbound-port", &[self.outbound_port][..]),
            ("inbound-port", &[self.inbound_port]),
            ("include-inbound-ports", included),
            ("exclude-inbound-ports", &self.exclude_inbound_ports),
            ("exclude-outbound-ports", &self.exclude_outbound_ports),
        ] {
            if ports.contains(&0) {
                return Err(SpecError::PortZero(flag));
            }
        }
        Ok(())
    }

    /// The inbound ports that aren't captured, sorted.
    pub fn excluded_inbound_ports(&self) -> Vec<u16> {
        sorted([&self.exclude_inbound_ports[..], &[self.inbound_port, self.outbound_port]].concat())
    }

    /// The rules for one family, in order.
    pub(super) fn rules(&self, family: Family) -> Rules {
        Rules { outbound: self.outbound(family), inbound: self.inbound() }
    }

    fn outbound(&self, family: Family) -> Vec<Rule> {
        use Condition::{Destination, NotDestination, OutLoopback, Ports, Proxy, Source};
        let own_source = IpNet::from(to_own_application(family.unspecified()));
        let why = format!("inbound side from {} to its application", own_source.addr());
        let mut rules = vec![Rule::new([OutLoopback, Source(own_source)], Action::Return, why)];
        for &identity in &self.proxy {
            let to_itself = [OutLoopback, NotDestination(family.loopback()), Proxy(identity)];
            let text =
                format!("proxy {identity} to own {family} address, a call of the application to itself");
            rules.push(Rule::new(to_itself, Action::Inbound, text));
        }
        for &identity in &self.proxy {
            rules.push(Rule::new([Proxy(identity)], Action::Return, format!("proxy {identity}")));
        }
        rules.push(Rule::new([OutLoopback], Action::Return, "application over loopback"));
        for ports in chunks(&self.exclude_outbound_ports) {
            let text = format!("excluded outbound ports {}", join(&ports));
            rules.push(Rule::new([Ports(ports)], Action::Return, text));
        }
        for &net in self.exclude_outbound_cidrs.iter().filter(|net| family.has(net)) {
            rules.push(Rule::new([Destination(net)], Action::Return, format!("excluded destination {net}")));
        }
        let capture = Action::Redirect(self.outbound_port);
        match &self.include_outbound_cidrs {
            Selection::All => {
                rules.push(Rule::new([], capture, format!("capture outbound at {}", self.outbound_port)));
            }
            Selection::Only(nets) => rules.extend(nets.iter().filter(|net| family.has(net)).map(|&net| {
                let text = format!("capture outbound to {net} at {}", self.outbound_port);
                Rule::new([Destination(net)], capture, text)
            })),
        }
        rules
    }

    fn inbound(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = chunks(&self.excluded_inbound_ports())
            .map(|ports| {
                let text = format!("excluded inbound ports {}", join(&ports));
                Rule::new([Condition::Ports(ports)], Action::Return, text)
            })
            .collect();
        let capture = Action::Redirect(self.inbound_port);
        match &self.include_inbound_ports {
            Selection::All => {
                rules.push(Rule::new([], capture, format!("capture inbound at {}", self.inbound_port)));
            }
            Selection::Only(ports) => rules.extend(chunks(ports).map(|ports| {
                let text = format!("capture inbound ports {} at {}", join(&ports), self.inbound_port);
                Rule::new([Condition::Ports(ports)], capture, text)
            })),
        }
        rules
    }
}

/// The rules of one family, for TCP. Connections that no rule redirects pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    /// For locally made connections.
    pub(super) outbound: Vec<Rule>,
    /// For connections that arrive, and an application's calls to itself.
    pub(super) inbound: Vec<Rule>,
}

/// All conditions hold: act. The comment says why, and is what `verify` recognises the rule by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
    pub(super) comment: String,
}

impl Rule {
    fn new(conditions: impl Into<Vec<Condition>>, action: Action, why: impl fmt::Display) -> Self {
        Self { conditions: conditions.into(), action, comment: format!("{COMMENT}{why}") }
    }
}

/// How every comment begins.
pub(super) const COMMENT: &str = "writ: ";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    OutLoopback,
    Source(IpNet),
    Destination(IpNet),
    NotDestination(IpNet),
    Proxy(Identity),
    /// Destination ports, at most [`MAX_PORTS`].
    Ports(Vec<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Let the connection pass as it is.
    Return,
    /// To the proxy.
    Redirect(u16),
    /// By the inbound rules.
    Inbound,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Whether a network is of this family.
    pub const fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) const fn loopback(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            Self::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        }
    }

    const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Gid(gid) => write!(f, "gid {gid}"),
            Self::Mark(mark) => write!(f, "mark {mark:#x}"),
        }
    }
}

impl<T: FromStr> FromStr for Selection<T>
where
    T::Err: fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let parse = |item: &str| item.parse().map_err(|error| format!("`{item}`: {error}"));
        items.map(parse).collect::<Result<_, _>>().map(Self::Only)
    }
}

impl<T: fmt::Display> fmt::Display for Selection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Only(items) => f.write_str(&join(items)),
        }
    }
}

/// xt_multiport takes no more, and a comment of nftables (128 bytes) has room for as many.
const MAX_PORTS: usize = 15;

fn chunks(ports: &[u16]) -> impl Iterator<Item = Vec<u16>> {
    let ports = sorted(ports.to_vec());
    (0..ports.len()).step_by(MAX_PORTS).map(move |at| ports[at..ports.len().min(at + MAX_PORTS)].to_vec())
}

fn sorted(mut ports: Vec<u16>) -> Vec<u16> {
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `a,b,c`.
pub(super) fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::net::intercept) fn spec() -> Spec {
        Spec {
            outbound_port: 15001,
            inbound_port: 15006,
            proxy: vec![Identity::Uid(1337), Identity::Mark(0x539)],
            include_inbound_ports: Selection::All,
            exclude_inbound_ports: vec![15021, 15090],
            include_outbound_cidrs: Selection::All,
            exclude_outbound_cidrs: vec!["10.96.0.1/32".parse().unwrap(), "fd00::/8".parse().unwrap()],
            exclude_outbound_ports: vec![3306],
        }
    }

    #[test]
    fn specifications_that_would_loop_or_mean_nothing_are_refused() {
        assert_eq!(spec().validate(), Ok(()));
        assert_eq!(Spec { proxy: vec![], ..spec() }.validate(), Err(SpecError::NoIdentity));
        assert_eq!(Spec { inbound_port: 15001, ..spec() }.validate(), Err(SpecError::SamePort(15001)));
        let zero = Spec { exclude_outbound_ports: vec![1, 0], ..spec() };
        assert_eq!(zero.validate(), Err(SpecError::PortZero("exclude-outbound-ports")));
    }

    #[test]
    fn every_family_gets_its_own_networks() {
        let comments = |family| -> Vec<String> {
            spec().rules(family).outbound.into_iter().map(|rule| rule.comment).collect()
        };
        assert!(comments(Family::V4).contains(&"writ: excluded destination 10.96.0.1/32".to_owned()));
        assert!(!comments(Family::V4).contains(&"writ: excluded destination fd00::/8".to_owned()));
        assert!(comments(Family::V6).contains(&"writ: excluded destination fd00::/8".to_owned()));
    }

    #[test]
    fn the_proxy_passes_before_anything_is_captured() {
        for family in Family::ALL {
            let rules = spec().rules(family).outbound;
            let pass = |identity| {
                rules
                    .iter()
                    .position(|r| r.action == Action::Return && r.conditions == [Condition::Proxy(identity)])
            };
            let capture = rules.iter().position(|r| matches!(r.action, Action::Redirect(_))).unwrap();
            for identity in spec().proxy {
                assert!(pass(identity).unwrap() < capture);
            }
        }
    }

    #[test]
    fn port_lists_are_cut_to_what_a_rule_and_a_comment_hold() {
        let many = Spec { exclude_inbound_ports: (60_000..60_040).collect(), ..spec() };
        let rules = many.rules(Family::V4).inbound;
        assert_eq!(rules.len(), 4);
        assert!(rules.iter().all(|rule| rule.comment.len() <= 128), "{rules:?}");
    }

    #[test]
    fn selections_parse() {
        assert_eq!("*".parse(), Ok(Selection::<u16>::All));
        assert_eq!("80, 443".parse(), Ok(Selection::Only(vec![80_u16, 443])));
        assert_eq!("".parse(), Ok(Selection::<u16>::Only(vec![])));
        assert!("80,x".parse::<Selection<u16>>().unwrap_err().contains("`x`"));
    }
}
