//! Remainders: what policies still ask on one connection, shared by connections that are alike in all that rules look at.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use super::admission::service_parts;
use super::attributes::ConnectionAttributes;
use super::authorization::{Authorization, Consultations};
use super::condition::ConnectionTest;
use super::index::RuleSet;

/// The rules that can still match on a connection, in what they still ask.
#[derive(Debug)]
pub struct Remainder {
    pub(super) connection: Connection,
    pub(super) enforced: RuleSet,
    pub(super) consulting: RuleSet,
    pub(super) marking: RuleSet,
    /// Of `enforced`, once something has been refused because no rule matched.
    service_parts: OnceLock<RuleSet>,
    pub(super) tcp: OnceLock<(Authorization, Consultations)>,
}

impl Remainder {
    pub(super) fn new(connection: Connection, [enforced, consulting, marking]: [RuleSet; 3]) -> Self {
        let (service_parts, tcp) = (OnceLock::new(), OnceLock::new());
        Self { connection, enforced, consulting, marking, service_parts, tcp }
    }

    /// What the enforced ALLOW rules ask beside the end user.
    pub(super) fn service_parts(&self) -> &RuleSet {
        self.service_parts.get_or_init(|| service_parts(&self.enforced))
    }

    /// How many rules it holds, or may come to hold.
    fn len(&self) -> usize {
        let of_users = self.enforced.rules().iter().filter(|rule| rule.label.user).count();
        self.enforced.len() + self.consulting.len() + self.marking.len() + of_users
    }
}

/// Which attributes of connections any rule looks at: connections that differ in others only are alike.
#[derive(Debug, Default)]
pub(super) struct LookedAt {
    identity: bool,
    source_ip: bool,
    remote_ip: bool,
    destination_ip: bool,
    destination_port: bool,
    sni: bool,
}

/// A connection in the attributes that are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    identity: Option<Box<str>>,
    source_ip: IpAddr,
    remote_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    sni: Option<Box<str>>,
}

impl LookedAt {
    pub(super) fn by<'a>(tests: impl Iterator<Item = &'a ConnectionTest>) -> Self {
        let mut looked_at = Self::default();
        for test in tests {
            match test {
                ConnectionTest::Principal(_)
                | ConnectionTest::Namespace(_)
                | ConnectionTest::ServiceAccount(_)
                | ConnectionTest::TrustDomain(_) => looked_at.identity = true,
                ConnectionTest::SourceIp(_) => looked_at.source_ip = true,
                ConnectionTest::RemoteIp(_) => looked_at.remote_ip = true,
                ConnectionTest::DestinationIp(_) => looked_at.destination_ip = true,
                ConnectionTest::DestinationPort(_) => looked_at.destination_port = true,
                ConnectionTest::Sni(_) => looked_at.sni = true,
            }
        }
        looked_at
    }

    pub(super) fn of(&self, connection: &ConnectionAttributes<'_>) -> Connection {
        const NOT_LOOKED_AT: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address =
            |looked_at, address: IpAddr| if looked_at { address.to_canonical() } else { NOT_LOOKED_AT };
        Connection {
            identity: connection.source_identity.filter(|_| self.identity).map(Into::into),
            source_ip: address(self.source_ip, connection.source_ip),
            remote_ip: address(self.remote_ip, connection.remote_ip),
            destination_ip: address(self.destination_ip, connection.destination_ip),
            destination_port: if self.destination_port { connection.destination_port } else { 0 },
            sni: connection.sni.filter(|_| self.sni).map(Into::into),
        }
    }
}

impl Connection {
    pub(super) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source_identity: self.identity.as_deref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
        }
    }
}

/// Remainders by connection, so that alike connections share one. Emptied when full: what is in use lives on.
#[derive(Debug, Default)]
pub(super) struct Remainders {
    by_connection: HashMap<Connection, Arc<Remainder>, RandomState>,
    rules: usize,
}

/// So many kinds of connections are remembered,
const MAX_REMAINDERS: usize = 4_096;
/// and so many rules in all their remainders together (about 200 bytes each).
const MAX_REMAINING_RULES: usize = 100_000;

impl Remainders {
    pub(super) fn get(&self, connection: &Connection) -> Option<Arc<Remainder>> {
        self.by_connection.get(connection).cloned()
    }

    pub(super) fn keep(&mut self, remainder: &Arc<Remainder>) {
        let rules = remainder.len();
        if self.by_connection.len() >= MAX_REMAINDERS || self.rules + rules > MAX_REMAINING_RULES {
            self.by_connection.clear();
            self.rules = 0;
        }
        self.rules += rules;
        self.by_connection.insert(remainder.connection.clone(), Arc::clone(remainder));
    }
}
