//! The nftables back end: one table of our own, replaced in one transaction.

use std::fmt::Write as _;

use super::command::{self, Failure};
use super::rules::{Action, Condition, Family, Identity, Rule, Spec, join};
use super::verify::Found;

/// The transaction that replaces whatever rules of ours there are.
pub(super) fn install_script(spec: &Spec) -> String {
    let mut script = remove_script().to_owned();
    script.push_str("table inet writ {\n");
    let per_family = Family::ALL.map(|family| spec.rules(family));
    // The inbound rules name no address, so that they are the same for both families.
    chain(&mut script, "inbound", "", per_family[0].inbound.iter().map(|rule| nft_rule(rule, None)));
    // A rule without an address would stand there twice.
    let [v4, v6] = &per_family;
    let outbound = merge(&v4.outbound, &v6.outbound);
    chain(&mut script, "output", &hook("output"), outbound);
    let jump = format!("meta l4proto tcp jump inbound comment \"{HOOK_COMMENT}\"");
    chain(&mut script, "prerouting", &hook("prerouting"), [jump]);
    script.push_str("}\n");
    script
}

/// Deleting what may not exist: declared first, which is no error if it does.
pub(super) const fn remove_script() -> &'static str {
    "table inet writ\ndelete table inet writ\n"
}

/// Runs a script; the kernel takes all of it or nothing.
pub(super) fn apply(script: &str) -> Result<(), Failure> {
    command::run("nft", &["-f", "-"], script).map(drop)
}

/// Whether this kernel would take the script.
pub(super) fn check(script: &str) -> Result<(), Failure> {
    command::run("nft", &["--check", "-f", "-"], script).map(drop)
}

/// The rules of ours that are in the kernel; the table is for both families.
pub(super) fn list() -> Result<Option<Found>, Failure> {
    let tables = command::list("nft", &["list", "tables"])?.unwrap_or_default();
    if !tables.lines().any(|line| line.trim() == "table inet writ") {
        return Ok(None);
    }
    Ok(Some(parse_listing(&command::run("nft", &["list", "table", "inet", "writ"], "")?)))
}

/// Before other chains for destination NAT (-100), so that none can take a connection away.
const PRIORITY: i32 = -110;
const HOOK_COMMENT: &str = "writ: inbound";

fn hook(hook: &str) -> String {
    format!("\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;\n")
}

fn chain(script: &mut String, name: &str, head: &str, rules: impl IntoIterator<Item = String>) {
    let _ = write!(script, "\tchain {name} {{\n{head}");
    for rule in rules {
        let _ = writeln!(script, "\t\t{rule}");
    }
    script.push_str("\t}\n");
}

/// Both families' rules in one list: rules that are alike once, others one after the other, each in its order.
fn merge(v4: &[Rule], v6: &[Rule]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut v6 = v6.iter().peekable();
    for rule in v4 {
        let shared = v6.clone().any(|other| other == rule);
        if shared {
            while let Some(before) = v6.next_if(|other| *other != rule) {
                lines.push(nft_rule(before, Some(Family::V6)));
            }
            v6.next();
        }
        lines.push(nft_rule(rule, (!shared).then_some(Family::V4)));
    }
    lines.extend(v6.map(|rule| nft_rule(rule, Some(Family::V6))));
    lines
}

/// `family`: the only one that the rule is for.
fn nft_rule(rule: &Rule, family: Option<Family>) -> String {
    let mut line = String::new();
    let addressed = rule.conditions.iter().any(|c| {
        matches!(c, Condition::Source(_) | Condition::Destination(_) | Condition::NotDestination(_))
    });
    if let (Some(family), false) = (family, addressed) {
        let _ = write!(line, "meta nfproto {} ", if family == Family::V4 { "ipv4" } else { "ipv6" });
    }
    line.push_str("meta l4proto tcp ");
    for condition in &rule.conditions {
        let _ = match condition {
            Condition::OutLoopback => write!(line, "oifname \"lo\" "),
            Condition::Source(net) => write!(line, "{} saddr {net} ", ip(net)),
            Condition::Destination(net) => write!(line, "{} daddr {net} ", ip(net)),
            Condition::NotDestination(net) => write!(line, "{} daddr != {net} ", ip(net)),
            Condition::Proxy(Identity::Uid(uid)) => write!(line, "meta skuid {uid} "),
            Condition::Proxy(Identity::Gid(gid)) => write!(line, "meta skgid {gid} "),
            Condition::Proxy(Identity::Mark(mark)) => write!(line, "meta mark {mark:#x} "),
            Condition::Ports(ports) => write!(line, "tcp dport {{ {} }} ", join(ports)),
        };
    }
    match rule.action {
        Action::Return => line.push_str("return"),
        Action::Redirect(port) => drop(write!(line, "redirect to :{port}")),
        Action::Inbound => line.push_str("jump inbound"),
    }
    let _ = write!(line, " comment \"{}\"", rule.comment);
    line
}

const fn ip(net: &ipnet::IpNet) -> &'static str {
    match net {
        ipnet::IpNet::V4(_) => "ip",
        ipnet::IpNet::V6(_) => "ip6",
    }
}

/// Comments and hooks out of `nft list table`, whose text for the rest differs between versions.
fn parse_listing(text: &str) -> Found {
    let mut found = Found::new("nft");
    let mut chain = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chain = name;
        } else if line.starts_with("type nat hook output ") && chain == "output" {
            found.hooked_outbound = true;
        } else if let Some(comment) = comment_of(line) {
            match chain {
                "output" => found.outbound.push(comment.to_owned()),
                "inbound" => found.inbound.push(comment.to_owned()),
                "prerouting" => found.hooked_inbound |= comment == HOOK_COMMENT,
                _ => {}
            }
        }
    }
    found
}

fn comment_of(line: &str) -> Option<&str> {
    line.rsplit_once("comment \"")?.1.strip_suffix('"')
}

/// The comments that the output chain has for a specification, in its order.
pub(super) fn outbound_comments(spec: &Spec) -> Vec<String> {
    let [v4, v6] = Family::ALL.map(|family| spec.rules(family).outbound);
    merge(&v4, &v6).iter().filter_map(|line| comment_of(line)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::spec;
    use super::*;

    #[test]
    fn script_of_a_specification() {
        let expected = r#"table inet writ
delete table inet writ
table inet writ {
	chain inbound {
		meta l4proto tcp tcp dport { 15001,15006,15021,15090 } return comment "writ: excluded inbound ports 15001,15006,15021,15090"
		meta l4proto tcp redirect to :15006 comment "writ: capture inbound at 15006"
	}
	chain output {
		type nat hook output priority -110; policy accept;
		meta l4proto tcp oifname "lo" ip saddr 127.0.0.6/32 return comment "writ: inbound side from 127.0.0.6 to its application"
		meta l4proto tcp oifname "lo" ip daddr != 127.0.0.0/8 meta skuid 1337 jump inbound comment "writ: proxy uid 1337 to own IPv4 address, a call of the application to itself"
		meta l4proto tcp oifname "lo" ip daddr != 127.0.0.0/8 meta mark 0x539 jump inbound comment "writ: proxy mark 0x539 to own IPv4 address, a call of the application to itself"
		meta l4proto tcp oifname "lo" ip6 saddr ::6/128 return comment "writ: inbound side from ::6 to its application"
		meta l4proto tcp oifname "lo" ip6 daddr != ::1/128 meta skuid 1337 jump inbound comment "writ: proxy uid 1337 to own IPv6 address, a call of the application to itself"
		meta l4proto tcp oifname "lo" ip6 daddr != ::1/128 meta mark 0x539 jump inbound comment "writ: proxy mark 0x539 to own IPv6 address, a call of the application to itself"
		meta l4proto tcp meta skuid 1337 return comment "writ: proxy uid 1337"
		meta l4proto tcp meta mark 0x539 return comment "writ: proxy mark 0x539"
		meta l4proto tcp oifname "lo" return comment "writ: application over loopback"
		meta l4proto tcp tcp dport { 3306 } return comment "writ: excluded outbound ports 3306"
		meta l4proto tcp ip daddr 10.96.0.1/32 return comment "writ: excluded destination 10.96.0.1/32"
		meta l4proto tcp ip6 daddr fd00::/8 return comment "writ: excluded destination fd00::/8"
		meta l4proto tcp redirect to :15001 comment "writ: capture outbound at 15001"
	}
	chain prerouting {
		type nat hook prerouting priority -110; policy accept;
		meta l4proto tcp jump inbound comment "writ: inbound"
	}
}
"#;
        assert_eq!(install_script(&spec()), expected);
    }

    #[test]
    fn listing_is_recognised() {
        let script = install_script(&spec());
        let found = parse_listing(&script);
        assert!(found.hooked_outbound && found.hooked_inbound);
        assert_eq!(found.outbound, outbound_comments(&spec()));
        assert_eq!(found.inbound.len(), 2);
        let unhooked = script.replace("type nat hook output", "");
        assert!(!parse_listing(&unhooked).hooked_outbound);
    }
}
