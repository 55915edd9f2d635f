//! What is said in the log about objects that are wrong: what is wrong, where, and what becomes of the object.

use crate::verdict::{Diagnostic, Severity, Verdict, VerdictState};

/// Kinds of which a bad object without a good version refuses what it selects.
const FAIL_CLOSED: [&str; 4] =
    ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "RateLimit"];

/// Says what is wrong, in the order of the files.
pub(crate) fn verdicts(verdicts: &[Verdict], is_new: impl Fn(&Diagnostic) -> bool) {
    let mut all: Vec<(&Diagnostic, VerdictState)> = Vec::new();
    for verdict in verdicts {
        let new = verdict.diagnostics.iter().filter(|found| is_new(found));
        all.extend(new.map(|found| (found, verdict.state)));
    }
    all.sort_by(|(a, _), (b, _)| (&a.file, a.line).cmp(&(&b.file, b.line)));
    for (found, state) in all {
        say(found, Some(state));
    }
}

/// Says what is wrong with an update of which nothing is taken.
pub(crate) fn refused<'d>(diagnostics: impl IntoIterator<Item = &'d Diagnostic>) {
    diagnostics.into_iter().for_each(|found| say(found, None));
}

fn say(found: &Diagnostic, state: Option<VerdictState>) {
    let object = found.object.as_ref().map(|(kind, namespace, name)| format!("{kind} {namespace}/{name}"));
    let file = found.file.as_ref().map(|file| format!("{file}:{}", found.line.unwrap_or(1)));
    let (object, file, state) = (object.as_deref(), file.as_deref(), state.map(VerdictState::as_str));
    let what = found.in_object();
    // The level says how bad it is.
    match found.severity {
        Severity::Error => {
            let becomes = becomes(found, state);
            tracing::error!(object, file, state, "{what}{becomes}");
        }
        Severity::Warning => tracing::warn!(object, file, state, "{what}"),
    }
}

fn becomes(found: &Diagnostic, state: Option<&str>) -> &'static str {
    let kind = found.object.as_ref().map_or("", |(kind, _, _)| kind);
    match state {
        Some("kept-last-good") => "; its last good version stays in force",
        Some("quarantined") if FAIL_CLOSED.contains(&kind) => "; it fails closed for what it selects",
        _ => "",
    }
}
