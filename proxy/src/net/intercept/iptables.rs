//! The iptables back end, for the variants `nft` and `legacy`: chains of our own in the table `nat`, each family in one
//! transaction.

use std::fmt::Write as _;

use super::command::{self, Failure};
use super::rules::{Action, Condition, Family, Identity, Rule, Spec, join};
use super::verify::Found;

/// One of the tools that may be installed side by side, and that don't see each other's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    v4: &'static str,
    v6: &'static str,
}

/// The names under which tools may be there, the system's own choice first.
const VARIANTS: [Variant; 3] = [
    Variant { v4: "iptables", v6: "ip6tables" },
    Variant { v4: "iptables-nft", v6: "ip6tables-nft" },
    Variant { v4: "iptables-legacy", v6: "ip6tables-legacy" },
];

/// The variants that are installed, each under one of its names.
pub(super) fn installed() -> Vec<Variant> {
    let mut kinds = Vec::new();
    VARIANTS
        .into_iter()
        .filter(|variant| match command::run(variant.v4, &["--version"], "") {
            Ok(version) => {
                // Before 1.8 there was only what is now called legacy, and it didn't say so.
                let nf_tables = version.contains("nf_tables");
                let new = !kinds.contains(&nf_tables);
                kinds.push(nf_tables);
                new
            }
            Err(_) => false,
        })
        .collect()
}

/// One family's transaction: what is given to which `iptables-restore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) program: String,
    pub(super) script: String,
}

/// How `iptables-restore` is called: leave other rules alone, wait for whoever holds the lock.
pub(super) const RESTORE: [&str; 2] = ["--noflush", "--wait=5"];

impl Variant {
    /// The system's own choice.
    pub(super) const DEFAULT: Self = VARIANTS[0];

    /// The transaction that replaces whatever rules of ours this variant has for a family.
    pub(super) fn install(self, spec: &Spec, family: Family) -> Result<Transaction, Failure> {
        let script = install_script(spec, family, &self.save(family)?);
        Ok(self.transaction(family, script))
    }

    /// The same for a namespace that has none, without looking.
    pub(super) fn install_afresh(self, spec: &Spec, family: Family) -> Transaction {
        self.transaction(family, install_script(spec, family, ""))
    }

    /// The transaction that removes all of ours; `None` if there is nothing.
    pub(super) fn remove(self, family: Family) -> Result<Option<Transaction>, Failure> {
        Ok(remove_script(&self.save(family)?).map(|script| self.transaction(family, script)))
    }

    /// The rules of ours that this variant has for a family.
    pub(super) fn list(self, family: Family) -> Result<Option<Found>, Failure> {
        Ok(parse_saved(self.program(family), &self.save(family)?))
    }

    fn transaction(self, family: Family, script: String) -> Transaction {
        Transaction { program: format!("{}-restore", self.program(family)), script }
    }

    const fn program(self, family: Family) -> &'static str {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// What there is, empty if this variant can have nothing. All tables, because naming one makes the legacy variant
    /// load its module.
    fn save(self, family: Family) -> Result<String, Failure> {
        let program = format!("{}-save", self.program(family));
        command::list(&program, &[]).map(Option::unwrap_or_default)
    }
}

impl Transaction {
    /// Whether it puts rules in place rather than removing them.
    pub(super) fn installs(&self) -> bool {
        self.script.contains("\n-A ")
    }

    /// Whether the tool would take it.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let arguments = [&RESTORE[..], &["--test"]].concat();
        command::run(&self.program, &arguments, &self.script).map(drop)
    }

    /// All of it or nothing.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        command::run(&self.program, &RESTORE, &self.script).map(drop)
    }
}

const INBOUND: &str = "WRIT_INBOUND";
const OUTPUT: &str = "WRIT_OUTPUT";
/// Ours begin with this, also those of an earlier version.
const PREFIX: &str = "WRIT_";

fn install_script(spec: &Spec, family: Family, saved: &str) -> String {
    // Declaring a chain empties it.
    let mut script = format!("*nat\n:{INBOUND} - [0:0]\n:{OUTPUT} - [0:0]\n");
    for jump in jumps(saved) {
        let _ = writeln!(script, "-D {jump}");
    }
    let rules = spec.rules(family);
    for (chain, rules) in [(INBOUND, rules.inbound), (OUTPUT, rules.outbound)] {
        for rule in rules {
            let _ = writeln!(script, "-A {chain} {}", iptables_rule(&rule));
        }
    }
    // First in their chains, so that no other rule can take a connection away.
    for (hook, chain) in [("PREROUTING", INBOUND), ("OUTPUT", OUTPUT)] {
        let _ = writeln!(script, "-I {hook} 1 -p tcp -j {chain}");
    }
    script.push_str("COMMIT\n");
    script
}

fn remove_script(saved: &str) -> Option<String> {
    let chains: Vec<&str> = nat(saved)
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .filter(|chain| chain.starts_with(PREFIX))
        .collect();
    if chains.is_empty() {
        return None;
    }
    let mut script = "*nat\n".to_owned();
    for jump in jumps(saved) {
        let _ = writeln!(script, "-D {jump}");
    }
    // All are emptied before any is deleted, for they refer to each other.
    for (verb, chain) in chains.iter().map(|chain| ("-F", chain)).chain(chains.iter().map(|c| ("-X", c))) {
        let _ = writeln!(script, "{verb} {chain}");
    }
    script.push_str("COMMIT\n");
    Some(script)
}

/// The lines of table `nat` out of what `iptables-save` prints.
fn nat(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().map(str::trim).skip_while(|line| *line != "*nat").take_while(|line| *line != "COMMIT")
}

/// Rules of other chains that lead into ours, without the `-A`.
fn jumps(saved: &str) -> impl Iterator<Item = &str> {
    nat(saved).filter_map(|line| line.strip_prefix("-A ")).filter(|rule| {
        let target = rule.rsplit_once(" -j ").map(|(_, target)| target);
        !rule.starts_with(PREFIX) && target.is_some_and(|target| target.starts_with(PREFIX))
    })
}

fn iptables_rule(rule: &Rule) -> String {
    let mut line = "-p tcp".to_owned();
    for condition in &rule.conditions {
        let _ = match condition {
            Condition::OutLoopback => write!(line, " -o lo"),
            Condition::Source(net) => write!(line, " -s {net}"),
            Condition::Destination(net) => write!(line, " -d {net}"),
            Condition::NotDestination(net) => write!(line, " ! -d {net}"),
            Condition::Proxy(Identity::Uid(uid)) => write!(line, " -m owner --uid-owner {uid}"),
            Condition::Proxy(Identity::Gid(gid)) => write!(line, " -m owner --gid-owner {gid}"),
            Condition::Proxy(Identity::Mark(mark)) => write!(line, " -m mark --mark {mark:#x}"),
            Condition::Ports(ports) => write!(line, " -m multiport --dports {}", join(ports)),
        };
    }
    let _ = write!(line, " -m comment --comment \"{}\" -j ", rule.comment);
    match rule.action {
        Action::Return => line.push_str("RETURN"),
        Action::Redirect(port) => drop(write!(line, "REDIRECT --to-ports {port}")),
        Action::Inbound => line.push_str(INBOUND),
    }
    line
}

fn parse_saved(backend: &'static str, saved: &str) -> Option<Found> {
    let mut found = Found::new(backend);
    let mut any = false;
    for line in nat(saved) {
        any |= line.strip_prefix(':').is_some_and(|chain| chain.starts_with(PREFIX));
        let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let unconditional = |target: &str| rule.strip_suffix(target) == Some("-p tcp -j ");
        match chain {
            "OUTPUT" => found.hooked_outbound |= unconditional(OUTPUT),
            "PREROUTING" => found.hooked_inbound |= unconditional(INBOUND),
            OUTPUT => found.outbound.extend(comment_of(rule)),
            INBOUND => found.inbound.extend(comment_of(rule)),
            _ => {}
        }
    }
    any.then_some(found)
}

fn comment_of(rule: &str) -> Option<String> {
    let (_, rest) = rule.split_once("--comment \"")?;
    rest.split_once('"').map(|(comment, _)| comment.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::spec;
    use super::*;

    const V6: &str = r#"*nat
:WRIT_INBOUND - [0:0]
:WRIT_OUTPUT - [0:0]
-A WRIT_INBOUND -p tcp -m multiport --dports 15001,15006,15021,15090 -m comment --comment "writ: excluded inbound ports 15001,15006,15021,15090" -j RETURN
-A WRIT_INBOUND -p tcp -m comment --comment "writ: capture inbound at 15006" -j REDIRECT --to-ports 15006
-A WRIT_OUTPUT -p tcp -o lo -s ::6/128 -m comment --comment "writ: inbound side from ::6 to its application" -j RETURN
-A WRIT_OUTPUT -p tcp -o lo ! -d ::1/128 -m owner --uid-owner 1337 -m comment --comment "writ: proxy uid 1337 to own IPv6 address, a call of the application to itself" -j WRIT_INBOUND
-A WRIT_OUTPUT -p tcp -o lo ! -d ::1/128 -m mark --mark 0x539 -m comment --comment "writ: proxy mark 0x539 to own IPv6 address, a call of the application to itself" -j WRIT_INBOUND
-A WRIT_OUTPUT -p tcp -m owner --uid-owner 1337 -m comment --comment "writ: proxy uid 1337" -j RETURN
-A WRIT_OUTPUT -p tcp -m mark --mark 0x539 -m comment --comment "writ: proxy mark 0x539" -j RETURN
-A WRIT_OUTPUT -p tcp -o lo -m comment --comment "writ: application over loopback" -j RETURN
-A WRIT_OUTPUT -p tcp -m multiport --dports 3306 -m comment --comment "writ: excluded outbound ports 3306" -j RETURN
-A WRIT_OUTPUT -p tcp -d fd00::/8 -m comment --comment "writ: excluded destination fd00::/8" -j RETURN
-A WRIT_OUTPUT -p tcp -m comment --comment "writ: capture outbound at 15001" -j REDIRECT --to-ports 15001
-I PREROUTING 1 -p tcp -j WRIT_INBOUND
-I OUTPUT 1 -p tcp -j WRIT_OUTPUT
COMMIT
"#;

    #[test]
    fn script_of_a_specification() {
        assert_eq!(install_script(&spec(), Family::V6, ""), V6);
    }

    const SAVED: &str = r#"# Generated
*filter
:INPUT ACCEPT [0:0]
-A INPUT -j WRIT_NOT_IN_NAT
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:WRIT_INBOUND - [0:0]
:WRIT_OUTPUT - [0:0]
-A PREROUTING -p tcp -j WRIT_INBOUND
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A OUTPUT -p tcp -j WRIT_OUTPUT
-A WRIT_INBOUND -p tcp -m comment --comment "writ: capture inbound at 15006" -j REDIRECT --to-ports 15006
-A WRIT_OUTPUT -p tcp -m owner --uid-owner 1 -m comment --comment "writ: proxy uid 1" -j WRIT_INBOUND
COMMIT
"#;

    #[test]
    fn installing_again_replaces() {
        let script = install_script(&spec(), Family::V4, SAVED);
        let deleted: Vec<&str> = script.lines().filter(|line| line.starts_with("-D")).collect();
        assert_eq!(deleted, ["-D PREROUTING -p tcp -j WRIT_INBOUND", "-D OUTPUT -p tcp -j WRIT_OUTPUT"]);
    }

    #[test]
    fn removal_takes_all_of_ours_and_nothing_else() {
        let expected = "*nat\n-D PREROUTING -p tcp -j WRIT_INBOUND\n-D OUTPUT -p tcp -j WRIT_OUTPUT\n\
            -F WRIT_INBOUND\n-F WRIT_OUTPUT\n-X WRIT_INBOUND\n-X WRIT_OUTPUT\nCOMMIT\n";
        assert_eq!(remove_script(SAVED).as_deref(), Some(expected));
        assert_eq!(remove_script("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"), None);
    }

    #[test]
    fn saved_rules_are_recognised() {
        let found = parse_saved("iptables", SAVED).unwrap();
        assert!(found.hooked_inbound && found.hooked_outbound);
        assert_eq!(found.inbound, ["writ: capture inbound at 15006"]);
        assert_eq!(found.outbound, ["writ: proxy uid 1"]);
        let narrowed = SAVED.replace("-A OUTPUT -p tcp -j", "-A OUTPUT -p tcp -m tcp --dport 80 -j");
        assert!(!parse_saved("iptables", &narrowed).unwrap().hooked_outbound);
        assert_eq!(parse_saved("iptables", "*nat\nCOMMIT\n"), None);
    }
}
