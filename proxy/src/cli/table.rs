//! Records for people: tables and colours on a terminal.

use serde_json::Value;

/// Paints text unless nobody would see it.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    pub fn stdout() -> Self {
        Self(super::colours(&std::io::stdout()))
    }

    /// For tests: none.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self(false)
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
    let mut out = String::new();
    let decided =
        format!("{} at {}: {}", text("/decision/outcome"), text("/decision/stage"), text("/decision/reason"));
    let by = policy(record.pointer("/decision/policy"));
    let asked = match (text("/request/method"), text("/request/protocol")) {
        ("", protocol) => format!("{protocol} to {}", text("/destination/address")),
        (method, _) => format!("{method} http://{}{}", text("/request/authority"), text("/request/path")),
    };
    out += &format!(
        "{} {asked}\n{}{}\n\n",
        paint.strong(text("/proxy/side")),
        outcome(paint, text("/decision/outcome"), &decided),
        if by.is_empty() { by } else { format!(", by {}", paint.strong(&by)) },
    );
    if let Some(why) = record.pointer("/ended/detail").and_then(Value::as_str) {
        out.truncate(out.trim_end().len());
        out += &format!("\n  {why}\n\n");
    }
    for check in record.pointer("/decision/checks").and_then(Value::as_array).into_iter().flatten() {
        out += &check_row(paint, check);
    }
    out += &route(record);
    out += &limits(record);
    out += &considered(record);
    out += &shadows(record);
    out + &format!("\n{}\n", paint.dim(&format!("config {}", text("/config/digest"))))
}

/// Green for what went well, red for what did not.
fn outcome(paint: Paint, word: &str, text: &str) -> String {
    match word {
        "allow" | "pass" => paint.good(text),
        "deny" | "fail" => paint.bad(text),
        _ => paint.dim(text),
    }
}

fn check_row(paint: Paint, check: &Value) -> String {
    let word = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
    // `not-reached` is both an outcome and its reason.
    let reason = if word("reason") == word("outcome") { "" } else { word("reason") };
    // Padded before it is painted: escapes have no width.
    let padded = format!("{:<15}", word("outcome"));
    let row = format!(
        "  {:<24}{}{reason:<27}{}",
        word("check"),
        outcome(paint, word("outcome"), &padded),
        policy(check.get("policy"))
    );
    format!("{}\n", row.trim_end())
}

fn route(record: &Value) -> String {
    let Some(route) = record.get("route") else { return String::new() };
    let word = |name: &str| route.get(name).and_then(Value::as_str).unwrap_or_default();
    let weight = if word("weight").is_empty() { String::new() } else { format!(", {}", word("weight")) };
    // A route may lead nowhere.
    let to =
        if word("backend").is_empty() { String::new() } else { format!("to {}{weight} ", word("backend")) };
    format!("\n  {to}by {}\n", policy(route.get("policy")))
}

/// Rate limits that would be taken.
fn limits(record: &Value) -> String {
    let mut out = String::new();
    for limit in record.get("limits").and_then(Value::as_array).into_iter().flatten() {
        let provider = limit.get("provider").and_then(Value::as_str);
        let counted = provider.map(|provider| format!(", counted by {provider}")).unwrap_or_default();
        out += &format!("\n  limited by {}{counted}\n", policy(limit.get("policy")));
    }
    out
}

fn considered(record: &Value) -> String {
    let Some(considered) = record.get("considered") else { return String::new() };
    let policies = considered.get("policies").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if policies.is_empty() {
        return String::new();
    }
    let mut out = "\n  what could have allowed it, and why it did not:\n".to_owned();
    for near in policies {
        let failed = near.get("failed").and_then(Value::as_str).unwrap_or_default();
        out += &format!("    {}\n      {failed}\n", policy(Some(near)));
    }
    match considered.get("others").and_then(Value::as_u64) {
        Some(others) if others > 0 => out + &format!("    and {others} more\n"),
        _ => out,
    }
}

/// What dry-run policies would have done.
fn shadows(record: &Value) -> String {
    let mut out = String::new();
    for shadow in record.get("shadow").and_then(Value::as_array).into_iter().flatten() {
        let word = |name: &str| shadow.get(name).and_then(Value::as_str).unwrap_or_default();
        let (would, why) = (word("outcome"), word("reason"));
        out += &format!("\n  dry run: would {would}: {why}, by {}\n", policy(shadow.get("policy")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_came_near() {
        let record = serde_json::json!({
            "proxy": {"side": "inbound"},
            "request": {"method": "GET", "authority": "ratings:9080", "path": "/metrics"},
            "config": {"digest": "sha256:77"},
            "decision": {"outcome": "deny", "stage": "authorize", "reason": "no-allow-matched", "checks": [
                {"check": "encryption", "outcome": "pass", "reason": "mtls",
                 "policy": {"kind": "PeerAuthentication", "namespace": "istio-system", "name": "default"}},
                {"check": "user-authorization", "outcome": "not-reached", "reason": "not-reached"}]},
            "considered": {"others": 3, "policies": [
                {"kind": "AuthorizationPolicy", "namespace": "bookinfo", "name": "viewer", "rule": 0,
                 "failed": "to.paths: /metrics is none of [/ratings/*]"}]},
            "limits": [{"outcome": "not-reached", "provider": "limiter", "policy":
                {"kind": "RateLimit", "namespace": "bookinfo", "name": "tenants", "rule": 1}}],
            "shadow": [{"outcome": "deny", "reason": "matched-deny", "policy":
                {"kind": "AuthorizationPolicy", "namespace": "bookinfo", "name": "later", "rule": 2}}],
        });
        let expected = "\
inbound GET http://ratings:9080/metrics
deny at authorize: no-allow-matched

  encryption              pass           mtls                       PeerAuthentication istio-system/default
  user-authorization      not-reached

  limited by RateLimit bookinfo/tenants rule 1, counted by limiter

  what could have allowed it, and why it did not:
    AuthorizationPolicy bookinfo/viewer rule 0
      to.paths: /metrics is none of [/ratings/*]
    and 3 more

  dry run: would deny: matched-deny, by AuthorizationPolicy bookinfo/later rule 2

config sha256:77
";
        assert_eq!(explained(&record), expected);
    }
}
