//! Whether traffic of this network namespace would be captured: the rules compared with those of the specification, and
//! connections that show it.

use serde::Serialize;

use super::probe::{self, Outcome};
use super::rules::{COMMENT, Family, Rule, Selection, Spec, join};
use super::{Error, families, iptables, namespace, nft, require_privilege};

/// Compares and probes. What it finds wrong is in the report; an error means that it couldn't look.
pub fn verify(spec: &Spec) -> Result<Report, Error> {
    spec.validate()?;
    require_privilege()?;
    let families = families().iter().map(|&family| {
        Ok(FamilyReport {
            family,
            rules: rules_report(spec, family)?,
            outbound: probe::outbound(spec, family),
            to_self: probe::to_self(spec, family),
        })
    });
    Ok(Report {
        namespace: namespace(),
        families: families.collect::<Result<_, Error>>()?,
        not_captured: not_captured(spec),
    })
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which network namespace.
    pub namespace: String,
    /// For each family that the kernel has.
    pub families: Vec<FamilyReport>,
    /// What the specification, or redirection itself, leaves out.
    pub not_captured: Vec<String>,
}

impl Report {
    /// Whether all that the specification covers would be captured.
    pub fn captured(&self) -> bool {
        self.families.iter().all(FamilyReport::captured)
    }
}

/// What was found for one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyReport {
    /// Which.
    pub family: Family,
    /// The rules in the kernel.
    pub rules: RulesReport,
    /// An application's connection to elsewhere.
    pub outbound: Outcome,
    /// An application's call to itself through the proxy.
    pub to_self: Outcome,
}

impl FamilyReport {
    /// Whether the rules are those of the specification and no probe got past them.
    pub fn captured(&self) -> bool {
        let passes = |outcome: &Outcome| !matches!(outcome, Outcome::NotCaptured(_));
        self.rules.problems.is_empty() && passes(&self.outbound) && passes(&self.to_self)
    }
}

/// The rules in the kernel, compared with the specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RulesReport {
    /// Which tool installed them; empty if there are none.
    pub installed_by: Vec<String>,
    /// What differs; empty if nothing does.
    pub problems: Vec<String>,
}

/// Rules of ours as a back end found them: comments in order, and whether they are reached at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    backend: &'static str,
    pub(super) hooked_outbound: bool,
    pub(super) hooked_inbound: bool,
    pub(super) outbound: Vec<String>,
    pub(super) inbound: Vec<String>,
}

impl Found {
    pub(super) const fn new(backend: &'static str) -> Self {
        Self {
            backend,
            hooked_outbound: false,
            hooked_inbound: false,
            outbound: Vec::new(),
            inbound: Vec::new(),
        }
    }

    fn problems(&self, outbound: &[String], inbound: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.hooked_outbound {
            problems.push("nothing leads from the output hook to the outbound rules".to_owned());
        }
        if !self.hooked_inbound {
            problems.push("nothing leads from the prerouting hook to the inbound rules".to_owned());
        }
        differences(&self.outbound, outbound, &mut problems);
        differences(&self.inbound, inbound, &mut problems);
        problems
    }
}

fn rules_report(spec: &Spec, family: Family) -> Result<RulesReport, Error> {
    let rules = spec.rules(family);
    let comments = |rules: &[Rule]| rules.iter().map(|r| r.comment.clone()).collect::<Vec<_>>();
    let inbound = comments(&rules.inbound);
    let mut report = RulesReport { installed_by: Vec::new(), problems: Vec::new() };
    if let Some(found) = nft::list()? {
        report.installed_by.push(found.backend.to_owned());
        report.problems.extend(found.problems(&nft::outbound_comments(spec), &inbound));
    }
    for variant in iptables::installed() {
        if let Some(found) = variant.list(family)? {
            report.installed_by.push(found.backend.to_owned());
            report.problems.extend(found.problems(&comments(&rules.outbound), &inbound));
        }
    }
    match report.installed_by.len() {
        0 => report.problems.push("no rules; run `writ intercept install`".to_owned()),
        1 => {}
        _ => report.problems.push(
            "rules by more than one tool, of which either may win; run `writ intercept install` again"
                .to_owned(),
        ),
    }
    Ok(report)
}

fn differences(found: &[String], expected: &[String], problems: &mut Vec<String>) {
    let name = |comment: &String| comment.trim_start_matches(COMMENT).to_owned();
    let mut unasked = found.to_vec();
    let before = problems.len();
    for comment in expected {
        match unasked.iter().position(|other| other == comment) {
            Some(at) => drop(unasked.remove(at)),
            None => problems.push(format!("rule missing: {}", name(comment))),
        }
    }
    problems.extend(unasked.iter().map(|comment| format!("rule not asked for: {}", name(comment))));
    if problems.len() == before && found != expected {
        problems.push("rules in another order".to_owned());
    }
}

fn not_captured(spec: &Spec) -> Vec<String> {
    let mut lines = vec![
        "UDP, ICMP, SCTP and raw sockets: only TCP is redirected".to_owned(),
        "connections that were made before the rules were installed".to_owned(),
        "the application over loopback, and to an own address of the host".to_owned(),
        format!(
            "the proxy itself: {}, and whoever else is or becomes that",
            join(&spec.proxy).replace(',', " or ")
        ),
        format!("inbound ports {}", join(&spec.excluded_inbound_ports())),
    ];
    if let Selection::Only(ports) = &spec.include_inbound_ports {
        lines.push(format!("inbound ports other than {}", join(ports)));
    }
    if !spec.exclude_outbound_ports.is_empty() {
        lines.push(format!("outbound ports {}", join(&spec.exclude_outbound_ports)));
    }
    if !spec.exclude_outbound_cidrs.is_empty() {
        lines.push(format!("destinations {}", join(&spec.exclude_outbound_cidrs)));
    }
    if let Selection::Only(nets) = &spec.include_outbound_cidrs {
        lines.push(format!("destinations other than {}", join(nets)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::spec;
    use super::*;

    fn problems(found: &[&str], expected: &[&str]) -> Vec<String> {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut problems = Vec::new();
        differences(&owned(found), &owned(expected), &mut problems);
        problems
    }

    #[test]
    fn differences_are_named() {
        assert!(problems(&["writ: a", "writ: b"], &["writ: a", "writ: b"]).is_empty());
        assert_eq!(problems(&["writ: a"], &["writ: a", "writ: b"]), ["rule missing: b"]);
        assert_eq!(problems(&["writ: a", "writ: x"], &["writ: a"]), ["rule not asked for: x"]);
        assert_eq!(problems(&["writ: b", "writ: a"], &["writ: a", "writ: b"]), ["rules in another order"]);
        assert_eq!(problems(&["writ: a", "writ: a"], &["writ: a"]), ["rule not asked for: a"]);
    }

    #[test]
    fn what_is_left_out_is_said() {
        let text = not_captured(&spec()).join("\n");
        for left_out in ["UDP", "uid 1337", "15021", "3306", "10.96.0.1/32"] {
            assert!(text.contains(left_out), "{left_out} in {text}");
        }
    }
}
