//! `writ check`: compiles a configuration as the proxy would and tells everything that is wrong with it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_client::verdict::{Diagnostic, Severity, Verdict, VerdictState};
use control_client::{Loaded, Workload, load_once};
use serde_json::{Value, json};

use super::run::Fips;
use super::{colours, failed, misused, print};

const NORMALIZATION: &str = "\
Paths are matched, and forwarded, in the form that MeshSettings spec.pathNormalization gives them:
  normalization: NONE | BASE (default) | MERGE_SLASHES | DECODE_AND_MERGE_SLASHES, as in Istio
  ambiguous:     KEEP (default where a normalization is named) | REFUSE_TRAVERSAL (default else) | REFUSE:
                 which paths that other readers may understand differently are refused with 400";

/// Flags of `writ check`.
#[derive(Debug, clap::Args)]
#[command(after_help = NORMALIZATION)]
pub struct Args {
    /// A directory, searched recursively for *.yaml, *.yml and *.json, or one file.
    pub dir: PathBuf,
    /// Print JSON: the digest, each object's verdict, and all diagnostics.
    #[arg(long)]
    pub json: bool,
    /// Fail for warnings too: those for which `run --config-strict` refuses a configuration, and rules that do nothing.
    #[arg(long, env = "WRIT_CONFIG_STRICT", value_parser = clap::builder::BoolishValueParser::new())]
    pub strict: bool,
    /// Check as `run --fips required` would: what is not approved is an error.
    #[arg(long, env = "WRIT_FIPS", value_name = "MODE", value_enum, default_value_t = Fips::Off)]
    pub fips: Fips,
}

/// Exit codes: 0 without errors (there may be warnings, unless strict), 1 with errors, 2 if there is nothing to check.
pub fn run(args: Args) -> ExitCode {
    if let Err(error) = args.fips.enforce() {
        return failed("check", &error);
    }
    let loaded = match load(&args.dir, &Workload::default()) {
        Ok(loaded) => loaded,
        Err(why) => return misused("check", &why),
    };
    let text = match args.json {
        true => format!("{}\n", to_json(&loaded)),
        false => to_text(&loaded, colours(&io::stdout())),
    };
    let printed = print(&text);
    if args.fails(&loaded) { ExitCode::FAILURE } else { printed }
}

impl Args {
    fn fails(&self, loaded: &Loaded) -> bool {
        count(loaded, Severity::Error) > 0 || (self.strict && !loaded.diagnostics.is_empty())
    }
}

/// Reads a configuration that somebody asks about. One without anything in it is a mistaken path, not an answer.
pub fn load(dir: &Path, workload: &Workload) -> Result<Loaded, String> {
    if let Err(error) = std::fs::metadata(dir) {
        return Err(format!("can't read {}: {error}", dir.display()));
    }
    let loaded = load_once(dir, workload);
    if loaded.objects == 0 && loaded.skipped.is_empty() && loaded.diagnostics.is_empty() {
        return Err(format!(
            "{} holds no objects; they are read from *.yaml, *.yml and *.json",
            dir.display()
        ));
    }
    Ok(loaded)
}

/// How many errors or warnings there are.
pub fn count(loaded: &Loaded, severity: Severity) -> usize {
    loaded.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
}

fn to_text(loaded: &Loaded, colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in &loaded.diagnostics {
        text.push_str(&line(diagnostic, colour));
        text.push('\n');
    }
    text += &consequences(loaded);
    if !loaded.skipped.is_empty() {
        let kinds: Vec<_> = loaded.skipped.iter().map(|(kind, number)| format!("{number} {kind}")).collect();
        text += &format!("kinds that are not read: {}\n", kinds.join(", "));
    }
    text + &format!(
        "{}, {}, {}; policy {}\n",
        counted(loaded.objects, "object"),
        counted(count(loaded, Severity::Error), "error"),
        counted(count(loaded, Severity::Warning), "warning"),
        loaded.snapshot.policy.digest
    )
}

/// What becomes of objects with errors.
fn consequences(loaded: &Loaded) -> String {
    let left_out =
        |verdict: &&Verdict| verdict.state == VerdictState::Quarantined && verdict.object.kind != "File";
    match loaded.snapshot.verdicts.iter().filter(left_out).count() {
        0 => String::new(),
        objects => format!(
            "{} with errors: a running proxy keeps the last good version; without one, policies refuse what they select, \
             and the rest is not in force\n",
            counted(objects, "object")
        ),
    }
}

/// `1 error`, `2 errors`.
pub fn counted(number: usize, noun: &str) -> String {
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
    json!({
        "kind": verdict.object.kind,
        "namespace": verdict.object.namespace,
        "name": verdict.object.name,
        "digest": verdict.object.digest,
        "state": verdict.state.as_str(),
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
        assert!(lines[1].starts_with("1 object with errors: a running proxy keeps"), "{text}");
        assert_eq!(lines[2], "kinds that are not read: 1 Deployment.apps");
        assert!(lines[3].starts_with("1 object, 1 error, 0 warnings; policy sha256:"), "{text}");
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
