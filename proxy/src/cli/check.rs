//! `writ check`: compiles a configuration as the proxy would and tells everything that is wrong with it.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use control_client::verdict::{Diagnostic, Severity, Verdict, VerdictState};
use control_client::{Loaded, Workload, load_once};
use serde_json::{Value, json};

/// Arguments of `writ check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory (searched recursively for *.yaml, *.yml and *.json) or file
    pub dir: PathBuf,
    /// Print one JSON object: digest, objects with their verdicts, diagnostics
    #[arg(long)]
    pub json: bool,
}

/// Exit codes: 0 without errors (there may be warnings), 1 with errors, 2 if there is nothing to check.
pub fn run(args: Args) -> ExitCode {
    if let Err(error) = std::fs::metadata(&args.dir) {
        // Nobody is left to tell if this fails.
        let _ = writeln!(io::stderr(), "writ check: can't read {}: {error}", args.dir.display());
        return ExitCode::from(2);
    }
    let loaded = load_once(&args.dir, &Workload::default());
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = if args.json { format!("{}\n", to_json(&loaded)) } else { to_text(&loaded, colour) };
    let written = io::stdout().write_all(text.as_bytes());
    let failed = written.is_err() || count(&loaded, Severity::Error) > 0;
    ExitCode::from(u8::from(failed))
}

fn count(loaded: &Loaded, severity: Severity) -> usize {
    loaded.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
}

fn to_text(loaded: &Loaded, colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in &loaded.diagnostics {
        text.push_str(&line(diagnostic, colour));
        text.push('\n');
    }
    let objects = loaded.snapshot.verdicts.iter().filter(|verdict| verdict.object.kind != "File").count();
    let summary = format!(
        "{}, {}, {}, {} of groups that are not read; policy {}\n",
        counted(objects, "object"),
        counted(count(loaded, Severity::Error), "error"),
        counted(count(loaded, Severity::Warning), "warning"),
        loaded.skipped,
        loaded.snapshot.policy.digest
    );
    text + &summary
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The diagnostic as it prints itself, with its severity coloured.
fn line(diagnostic: &Diagnostic, colour: bool) -> String {
    let plain = diagnostic.to_string();
    let (word, code) = match diagnostic.severity {
        Severity::Error => ("error:", "\x1b[1;31merror:\x1b[0m"),
        Severity::Warning => ("warning:", "\x1b[1;33mwarning:\x1b[0m"),
    };
    // The file's name may have the word in it, so the place is left out of the search.
    let place = diagnostic.file.as_ref().map_or(0, String::len);
    match plain.split_at_checked(place) {
        Some((place, rest)) if colour => format!("{place}{}", rest.replacen(word, code, 1)),
        _ => plain,
    }
}

fn to_json(loaded: &Loaded) -> Value {
    json!({
        "digest": loaded.snapshot.policy.digest,
        "skipped": loaded.skipped,
        "objects": loaded.snapshot.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        "diagnostics": loaded.diagnostics.iter().map(diagnostic).collect::<Vec<_>>(),
    })
}

fn verdict(verdict: &Verdict) -> Value {
    let state = match verdict.state {
        VerdictState::Accepted => "accepted",
        VerdictState::KeptLastGood => "kept-last-good",
        VerdictState::Quarantined => "quarantined",
        VerdictState::Ignored => "ignored",
    };
    json!({
        "kind": verdict.object.kind,
        "namespace": verdict.object.namespace,
        "name": verdict.object.name,
        "digest": verdict.object.digest,
        "state": state,
    })
}

fn diagnostic(diagnostic: &Diagnostic) -> Value {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut found = json!({
        "severity": severity,
        "field": diagnostic.field,
        "message": diagnostic.message,
        "file": diagnostic.file,
        "line": diagnostic.line,
    });
    if let Some((kind, namespace, name)) = &diagnostic.object {
        found["object"] = json!({ "kind": kind, "namespace": namespace, "name": name });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded() -> Loaded {
        control_client::load_str(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: X}}\n---\napiVersion: apps/v1\nkind: Deployment\n",
            &Workload::default(),
        )
    }

    #[test]
    fn text_has_every_diagnostic_and_a_summary() {
        let text = to_text(&loaded(), false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with(
            "<memory>:4: error: PeerAuthentication default/p: spec.mtls.mode: unknown value `X`"
        ));
        assert!(
            lines[1]
                .starts_with("1 object, 1 error, 0 warnings, 1 of groups that are not read; policy sha256:")
        );
        assert!(to_text(&loaded(), true).contains("\x1b[1;31merror:\x1b[0m PeerAuthentication"));
    }

    #[test]
    fn json_has_the_same() {
        let json = to_json(&loaded());
        assert_eq!(json["objects"][0]["state"], "quarantined");
        assert_eq!(json["diagnostics"][0]["line"], 4);
        assert_eq!(json["diagnostics"][0]["object"]["name"], "p");
        assert!(json["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
    }
}
