//! Interception: the redirection rules of a network namespace, as data, and the back ends that put them into the kernel.
//!
//! TCP that the application sends or receives is redirected to the proxy by destination NAT in the `nat` hooks, by
//! nftables or iptables. All changes are plans first, so that a dry run shows exactly what would be done.

mod command;
mod iptables;
mod nft;
mod probe;
mod rules;
mod verify;

use std::fmt;
use std::io;

pub use command::Failure;
pub use probe::Outcome;
pub use rules::{Family, Identity, Selection, Spec, SpecError};
pub use verify::{FamilyReport, Report, RulesReport, verify};

use iptables::{Transaction, Variant};

/// Which tool puts the rules into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// Take nftables if its tool is there and the kernel takes the rules, else iptables.
    Auto,
    /// Make a table of nftables.
    Nft,
    /// Make chains in the tables `nat` of iptables and ip6tables.
    Iptables,
}

/// Why rules can't be installed, verified or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification contradicts itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Not allowed.
    #[error(
        "changing or listing the rules of network namespace {0} needs CAP_NET_ADMIN; run it as root in that \
         namespace, in a container with `NET_ADMIN` added to its capabilities"
    )]
    NotPrivileged(String),
    /// A tool failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// No tool works here.
    #[error("neither back end works here. nftables: {nft}. iptables: {iptables}")]
    NoBackend {
        /// Why nftables doesn't.
        nft: Failure,
        /// Why iptables doesn't.
        iptables: Failure,
    },
    /// The address for the inbound side couldn't be set or removed.
    #[error("can't change address ::6 of the loopback interface: {0}")]
    Address(io::Error),
}

/// What would be done to the network namespace, in order. Shown by `Display`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Nft(String),
    Iptables(Transaction),
    /// Whether the inbound side's IPv6 source address is on the loopback interface.
    InboundSourceV6(bool),
}

impl Plan {
    /// Installs the rules of a specification in place of any earlier ones of ours, whichever tool those came by.
    pub fn install(spec: &Spec, backend: Backend) -> Result<Self, Error> {
        spec.validate()?;
        require_privilege()?;
        match backend {
            Backend::Nft => Ok(Self::install_nft(spec)?),
            Backend::Iptables => Ok(Self::install_iptables(spec)?),
            Backend::Auto => Self::install_nft(spec).or_else(|nft| {
                Self::install_iptables(spec).map_err(|iptables| Error::NoBackend { nft, iptables })
            }),
        }
    }

    /// As [`install`](Self::install) for a namespace without rules of ours: without privileges, and without a look at
    /// what is there.
    pub fn install_afresh(spec: &Spec, backend: Backend) -> Result<Self, Error> {
        spec.validate()?;
        let steps = match backend {
            Backend::Auto | Backend::Nft => vec![Step::Nft(nft::install_script(spec))],
            Backend::Iptables => {
                let afresh = |&family| Step::Iptables(Variant::DEFAULT.install_afresh(spec, family));
                families().iter().map(afresh).collect()
            }
        };
        Ok(Self { steps }.with_inbound_source())
    }

    /// Removes everything that any installation of ours has left.
    pub fn remove() -> Result<Self, Error> {
        require_privilege()?;
        let mut plan = Self::default();
        plan.remove_nft()?;
        plan.remove_iptables(None)?;
        let source = super::socket::INBOUND_SOURCE_V6.into();
        if super::interface::local_addresses().map_err(Error::Address)?.contains(&source) {
            plan.steps.push(Step::InboundSourceV6(false));
        }
        Ok(plan)
    }

    /// Which tool it uses first.
    pub fn backend(&self) -> &str {
        match self.steps.first() {
            Some(Step::Nft(_)) => "nft",
            Some(Step::Iptables(transaction)) => &transaction.program,
            Some(Step::InboundSourceV6(_)) | None => "nothing",
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Does it. When a step of an installation fails, what earlier steps have put in place is taken back: half of it
    /// would capture one family and let the other pass.
    pub fn apply(&self) -> Result<(), Error> {
        let result = self.steps.iter().try_for_each(Step::apply);
        if result.is_err() && self.installs() {
            // The first failure is the one to be told.
            let _ = Self::remove().and_then(|plan| plan.steps.iter().try_for_each(Step::apply));
        }
        result
    }

    fn installs(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Nft(script) => script != nft::remove_script(),
            Step::Iptables(transaction) => transaction.installs(),
            Step::InboundSourceV6(present) => *present,
        })
    }

    // The rules of another back end go last, so that there is no moment without rules.

    fn install_nft(spec: &Spec) -> Result<Self, Failure> {
        let script = nft::install_script(spec);
        nft::check(&script)?;
        let mut plan = Self { steps: vec![Step::Nft(script)] }.with_inbound_source();
        plan.remove_iptables(None)?;
        Ok(plan)
    }

    /// By the first variant that takes the rules for every family.
    fn install_iptables(spec: &Spec) -> Result<Self, Failure> {
        let mut refused = Failure::Missing("iptables".to_owned());
        for variant in iptables::installed() {
            match Self::transactions(variant, spec) {
                Ok(steps) => {
                    let mut plan = Self { steps }.with_inbound_source();
                    plan.remove_nft()?;
                    plan.remove_iptables(Some(variant))?;
                    return Ok(plan);
                }
                Err(failure) => refused = failure,
            }
        }
        Err(refused)
    }

    fn transactions(variant: Variant, spec: &Spec) -> Result<Vec<Step>, Failure> {
        let checked = |&family: &Family| {
            let transaction = variant.install(spec, family)?;
            transaction.check().map(|()| Step::Iptables(transaction))
        };
        families().iter().map(checked).collect()
    }

    fn with_inbound_source(mut self) -> Self {
        if has_loopback_v6() {
            self.steps.push(Step::InboundSourceV6(true));
        }
        self
    }

    fn remove_nft(&mut self) -> Result<(), Failure> {
        if nft::list()?.is_some() {
            self.steps.push(Step::Nft(nft::remove_script().to_owned()));
        }
        Ok(())
    }

    fn remove_iptables(&mut self, except: Option<Variant>) -> Result<(), Failure> {
        for variant in iptables::installed().into_iter().filter(|&variant| Some(variant) != except) {
            for &family in families() {
                self.steps.extend(variant.remove(family)?.map(Step::Iptables));
            }
        }
        Ok(())
    }
}

impl Step {
    fn apply(&self) -> Result<(), Error> {
        match self {
            Self::Nft(script) => Ok(nft::apply(script)?),
            Self::Iptables(transaction) => Ok(transaction.apply()?),
            Self::InboundSourceV6(present) => {
                super::interface::assign_inbound_source_v6(*present).map_err(Error::Address)
            }
        }
    }
}

impl fmt::Display for Plan {
    /// A shell script that does the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Nft(script) => writeln!(f, "nft -f - <<'END'\n{script}END")?,
                Step::Iptables(Transaction { program, script }) => {
                    writeln!(f, "{program} {} <<'END'\n{script}END", iptables::RESTORE.join(" "))?;
                }
                Step::InboundSourceV6(true) => writeln!(f, "ip -6 address replace ::6/128 dev lo nodad")?,
                Step::InboundSourceV6(false) => writeln!(f, "ip -6 address delete ::6/128 dev lo")?,
            }
        }
        Ok(())
    }
}

/// Whether this process may change rules: for a dry run that does without.
pub fn is_privileged() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

fn require_privilege() -> Result<(), Error> {
    if is_privileged() { Ok(()) } else { Err(Error::NotPrivileged(namespace())) }
}

/// The current network namespace as `lsns` and `/proc` name it: `net:[4026531840]`.
pub fn namespace() -> String {
    std::fs::read_link("/proc/self/ns/net")
        .map_or_else(|_| "(unknown)".to_owned(), |link| link.to_string_lossy().into_owned())
}

/// The families that the kernel has; ip6tables fails on one without IPv6.
fn families() -> &'static [Family] {
    let has_ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    if has_ipv6 { &Family::ALL } else { &Family::ALL[..1] }
}

/// Whether the loopback interface can take an IPv6 address.
fn has_loopback_v6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    disabled.is_ok_and(|value| value.trim() == "0")
}
