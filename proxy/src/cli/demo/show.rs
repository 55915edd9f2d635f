//! What the demo prints: an invitation, and rows of decisions.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::follow::Changes;
use super::mesh::Mesh;
use crate::cli::table::{Paint, policy};

/// The live demo on its screen.
pub struct Live<Out> {
    out: Out,
    heading: bool,
}

impl<Out: Write> Live<Out> {
    /// Says how to try it.
    pub fn begin(mesh: &Mesh, mut out: Out) -> io::Result<Self> {
        out.write_all(invitation(mesh).as_bytes())?;
        out.flush()?;
        Ok(Self { out, heading: false })
    }

    /// Prints one record.
    pub fn decision(&mut self, line: &str) -> io::Result<()> {
        let Ok(record) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        if !self.heading {
            self.heading = true;
            writeln!(self.out, "{}", Paint::stdout().dim(&Row::HEADING.to_string()))?;
        }
        writeln!(self.out, "{}", decision_row(None, &record))
    }

    /// Prints what became of a change to the configuration.
    pub fn configuration(&mut self, changes: &Changes) -> io::Result<()> {
        let paint = Paint::stdout();
        for mistake in &changes.mistakes {
            writeln!(self.out, "config    {}", paint.bad(mistake))?;
        }
        writeln!(self.out, "config    {}", changes.summary)
    }
}

fn invitation(mesh: &Mesh) -> String {
    let paint = Paint::stdout();
    let (at, edge) = (mesh.entrance, mesh.edge.port());
    let ask = |path: &str| format!("curl -i http://{at}{path} -H 'Host: ratings:9080'");
    format!(
        "\n{}\n\n  you = productpage -> [sidecar] == mTLS ==> [sidecar] -> ratings v1 (90 %) or v2 (10 %)\n\n\
         allowed               {}\n\
         denied by a rule      {}\n\
         nothing allows it     {}\n\
         plaintext, past mTLS  curl -i http://{}/ratings/1\n\
         from outside          curl -i --cacert {} --resolve shop.test:{edge}:127.0.0.1 https://shop.test:{edge}/ratings/1\n\n\
         The policies are in {}: edit them, and the proxies follow.\n\
         Decisions, as they are recorded (Ctrl-C ends):\n\n",
        paint.strong("A small mesh is running."),
        ask("/ratings/1"),
        ask("/ratings/embargoed/1"),
        ask("/metrics"),
        mesh.ratings,
        mesh.roots().display(),
        mesh.config().display(),
    )
}

/// A row of the table. Its last cell has a line of its own where the terminal is too narrow for both.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row<'a> {
    /// Which of the fixed requests, after its mark; `None` where decisions are shown live.
    pub what: Option<&'a str>,
    /// Of the proxy.
    pub side: &'a str,
    /// Method and path.
    pub request: &'a str,
    /// Of the answer.
    pub status: &'a str,
    /// Allow or deny.
    pub outcome: &'a str,
    /// Why.
    pub reason: &'a str,
    /// The policy, and where the request went.
    pub by: &'a str,
}

impl Row<'static> {
    /// Of the table.
    pub const HEADING: Self = Row {
        what: None,
        side: "side",
        request: "request",
        status: "status",
        outcome: "decision",
        reason: "reason",
        by: "by",
    };
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.within(columns()))
    }
}

impl Row<'_> {
    fn within(&self, columns: usize) -> String {
        let Self { what, side, request, status, outcome, reason, by } = self;
        let (mark, what) = what.map_or((0, String::new()), |what| ("ok  ".len(), format!("{what:<18} ")));
        let row = format!("{what}{side:<9} {request:<24} {status:<6} {outcome:<9} {reason:<22} ");
        if mark + row.chars().count() + by.chars().count() <= columns {
            return format!("{row}{by}").trim_end().to_owned();
        }
        format!("{}\n{:10}{by}", row.trim_end(), "")
    }
}

/// Of the terminal. What is not one takes any width.
fn columns() -> usize {
    let stdout = io::stdout();
    match rustix::termios::tcgetwinsize(&stdout) {
        Ok(size) if stdout.is_terminal() && size.ws_col > 0 => size.ws_col.into(),
        _ => usize::MAX,
    }
}

/// A text of a record; empty where there is none.
pub fn text<'r>(record: &'r Value, pointer: &str) -> &'r str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A record as a row.
pub fn decision_row(what: Option<&str>, record: &Value) -> String {
    let paint = Paint::stdout();
    // What is not HTTP has neither.
    let request = match text(record, "/request/method") {
        "" => text(record, "/request/protocol").to_owned(),
        method => format!("{method} {}", text(record, "/request/path")),
    };
    let status = record.pointer("/response/status").map(Value::to_string).unwrap_or_default();
    let by = match (policy(record.pointer("/decision/policy")), text(record, "/route/backend")) {
        (policy, "") => policy,
        (policy, backend) => format!("{policy} -> {backend}"),
    };
    let (mut outcome, mut reason) = (text(record, "/decision/outcome"), text(record, "/decision/reason"));
    let ended = text(record, "/ended/reason");
    if record.pointer("/response/status").and_then(Value::as_u64) >= Some(500) {
        // What failed says more than what had been allowed.
        (outcome, reason) = ("failed", ended);
    } else if reason == "decided-by-server" {
        outcome = "passed on";
    }
    let why = text(record, "/ended/detail");
    let by = if by.is_empty() { why } else { &by };
    let row = Row {
        what,
        side: text(record, "/proxy/side"),
        request: &request,
        status: &status,
        outcome,
        reason,
        by,
    };
    match row.outcome {
        "deny" | "failed" => paint.bad(&row.to_string()),
        _ if row.side == "inbound" => paint.good(&row.to_string()),
        _ => row.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_gets_two_lines() {
        let row = Row {
            side: "inbound",
            request: "GET /ratings/1",
            status: "200",
            outcome: "allow",
            reason: "matched-allow",
            by: "AuthorizationPolicy bookinfo/ratings-viewer rule 0",
            ..Row::default()
        };
        assert_eq!(row.within(usize::MAX).lines().count(), 1);
        let narrow = row.within(80);
        let lines: Vec<_> = narrow.lines().collect();
        assert_eq!(lines[0], "inbound   GET /ratings/1           200    allow     matched-allow");
        assert_eq!(lines[1], "          AuthorizationPolicy bookinfo/ratings-viewer rule 0");
        assert_eq!(Row { by: "", ..row }.within(80).lines().count(), 1);
    }
}
