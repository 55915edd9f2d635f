//! Records for people: tables and colours on a terminal.

use std::io::IsTerminal;

use serde_json::Value;

/// Paints text unless nobody would see it.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// For standard output: colours on a terminal, unless `NO_COLOR` is set (no-color.org).
    pub fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// What went well.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// What did not.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// What matters more.
    pub fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }
}

/// `AuthorizationPolicy bookinfo/ratings-viewer rule 0`; empty where a default decided.
pub fn policy(value: Option<&Value>) -> String {
    let Some(policy) = value.filter(|value| value.is_object()) else { return String::new() };
    let text = |name: &str| policy.get(name).and_then(Value::as_str).unwrap_or_default();
    let rule =
        policy.get("rule").and_then(Value::as_u64).map(|rule| format!(" rule {rule}")).unwrap_or_default();
    format!("{} {}/{}{rule}", text("kind"), text("namespace"), text("name"))
}

/// A record as `writ explain` shows it.
pub fn explained(record: &Value) -> String {
    let paint = Paint::stdout();
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let outcome = |word: &str| match word {
        "allow" | "pass" => paint.good(word),
        "deny" | "fail" => paint.bad(word),
        _ => paint.dim(word),
    };
    let mut out = format!(
        "{} {} {}{}  {} at {}: {}  {}\n\n",
        paint.strong(text("/proxy/side")),
        text("/request/method"),
        text("/request/authority"),
        text("/request/path"),
        outcome(text("/decision/outcome")),
        text("/decision/stage"),
        text("/decision/reason"),
        paint.strong(&policy(record.pointer("/decision/policy"))),
    );
    for check in record.pointer("/decision/checks").and_then(Value::as_array).into_iter().flatten() {
        let word = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
        out += &format!(
            "  {:<24}{:<24}{:<28}{}\n",
            word("check"),
            outcome(word("outcome")),
            word("reason"),
            policy(check.get("policy"))
        );
    }
    if let Some(route) = record.get("route") {
        let word = |name: &str| route.get(name).and_then(Value::as_str).unwrap_or_default();
        out += &format!(
            "\n  route {}  backend {} {}\n",
            policy(route.get("policy")),
            word("backend"),
            word("weight")
        );
    }
    if let Some(considered) = record.get("considered") {
        out += "\n  considered, and why each does not allow it:\n";
        for near in considered.get("policies").and_then(Value::as_array).into_iter().flatten() {
            let failed = near.get("failed").and_then(Value::as_str).unwrap_or_default();
            out += &format!("    {}  {failed}\n", policy(Some(near)));
        }
    }
    for shadow in record.get("shadow").and_then(Value::as_array).into_iter().flatten() {
        let word = |name: &str| shadow.get(name).and_then(Value::as_str).unwrap_or_default();
        out += &format!(
            "\n  dry run: {} would {} ({})\n",
            policy(shadow.get("policy")),
            word("outcome"),
            word("reason")
        );
    }
    out += &format!("\n{}\n", paint.dim(&format!("config {}", text("/config/digest"))));
    out
}
