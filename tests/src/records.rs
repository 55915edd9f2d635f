//! Decision records as they come from the proxies of a mesh, and as tests look at them.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::soon;

/// One record.
#[derive(Clone)]
pub struct Record(Value);

impl Record {
    /// A record of its JSON.
    pub fn new(value: Value) -> Self {
        Self(value)
    }

    /// The text at a JSON pointer, or nothing.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number at a JSON pointer, or 0.
    pub fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    /// `inbound` or `outbound`.
    pub fn side(&self) -> &str {
        self.text("/proxy/side")
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.text("/id")
    }

    /// Path of the request.
    pub fn path(&self) -> &str {
        self.text("/request/path")
    }

    /// Status answered; 0: none.
    pub fn status(&self) -> u64 {
        self.number("/response/status")
    }

    /// `OUTCOME at STAGE: REASON[ by POLICY]`.
    pub fn decision(&self) -> String {
        let mut text = format!(
            "{} at {}: {}",
            self.text("/decision/outcome"),
            self.text("/decision/stage"),
            self.text("/decision/reason")
        );
        let policy = policy(self.0.pointer("/decision/policy"));
        if !policy.is_empty() {
            text.push_str(&format!(" by {policy}"));
        }
        text
    }

    /// `REASON at STAGE`.
    pub fn ended(&self) -> String {
        format!("{} at {}", self.text("/ended/reason"), self.text("/ended/stage"))
    }

    /// What its end says to the operator.
    pub fn detail(&self) -> &str {
        self.text("/ended/detail")
    }

    /// The five checks, each as `OUTCOME REASON[ by POLICY]`, in record order.
    pub fn checks(&self) -> Vec<String> {
        let checks =
            self.0.pointer("/decision/checks").and_then(Value::as_array).cloned().unwrap_or_default();
        checks.iter().map(check).collect()
    }

    /// One check by its name, in the form of [`Record::checks`].
    pub fn check(&self, name: &str) -> String {
        let checks = self.0.pointer("/decision/checks").and_then(Value::as_array);
        let found = checks.and_then(|checks| checks.iter().find(|check| check["check"] == name));
        found.map(check).unwrap_or_default()
    }

    /// Outcomes of the attempts, in order.
    pub fn attempts(&self) -> Vec<&str> {
        let attempts = self.0.pointer("/route/attempts").and_then(Value::as_array);
        attempts.into_iter().flatten().filter_map(|attempt| attempt["outcome"].as_str()).collect()
    }

    /// The policy that chose the route, as [`Record::decision`] names policies.
    pub fn route(&self) -> String {
        policy(self.0.pointer("/route/policy"))
    }

    /// Whether policy and routes alone decided, about something that is known in full: not a handshake, the bytes of a
    /// request, or what became of the way to the server.
    pub fn decided_by_policy(&self) -> bool {
        let decided = ["admit", "authorize", "route", "split"].contains(&self.text("/decision/stage"));
        let whole = self.text("/ended/stage") != "sanitize" && self.text("/request/method") != "CONNECT";
        let of_tunnels = matches!(self.text("/request/protocol"), "tcp" | "tls");
        decided && whole && (of_tunnels || !self.text("/request/method").is_empty())
    }

    /// How what is explained of the same request differs, if it does: in what decided, each check, route and marks.
    pub fn differs(&self, explained: &Self) -> Option<String> {
        let differs = |what: &str, said: String, explained: String| {
            (said != explained).then(|| format!("{what}: {said} / {explained}"))
        };
        let text =
            |pointer: &str| differs(pointer, self.text(pointer).into(), explained.text(pointer).into());
        let mut checks = (self.checks(), explained.checks());
        if self.side() == "outbound" {
            // What a hop proves is known when there is one.
            checks = (checks.0.split_off(2), checks.1.split_off(2));
        }
        let refused = self.text("/decision/outcome") == "deny" && self.side() != "outbound";
        let part = |name: &str| {
            differs(name, format!("{:?}", self.0.get(name)), format!("{:?}", explained.0.get(name)))
        };
        differs("decision", self.decision(), explained.decision())
            .or_else(|| differs("checks", format!("{:?}", checks.0), format!("{:?}", checks.1)))
            .or_else(|| differs("route", self.route(), explained.route()))
            .or_else(|| text("/destination/service"))
            .or_else(|| text("/decision/policy/digest"))
            .or_else(|| part("shadow"))
            .or_else(|| part("audit"))
            .or_else(|| refused.then(|| differs("end", self.ended(), explained.ended())).flatten())
            .or_else(|| self.considered_differs(explained))
    }

    /// A record tells the nearest policies and the number of the others; all are explained.
    fn considered_differs(&self, explained: &Self) -> Option<String> {
        let policies = |record: &Self| record.0.pointer("/considered/policies").cloned().unwrap_or_default();
        let Value::Array(told) = policies(self) else { return None };
        let all = policies(explained).as_array().cloned().unwrap_or_default();
        let others = self.number("/considered/others") as usize;
        (all.len() != told.len() + others || all[..told.len()] != told)
            .then(|| format!("considered: {told:?} and {others} / {all:?}"))
    }

    /// The whole of it.
    pub fn json(&self) -> &Value {
        &self.0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn check(check: &Value) -> String {
    let word = |key: &str| check[key].as_str().unwrap_or_default();
    match policy(check.get("policy")).as_str() {
        "" => format!("{} {}", word("outcome"), word("reason")),
        policy => format!("{} {} by {policy}", word("outcome"), word("reason")),
    }
}

/// `KIND NAMESPACE/NAME[ rule N]`.
fn policy(value: Option<&Value>) -> String {
    let Some(value) = value else { return String::new() };
    let word = |key: &str| value[key].as_str().unwrap_or_default();
    let mut text = format!("{} {}/{}", word("kind"), word("namespace"), word("name"));
    if let Some(rule) = value["rule"].as_u64() {
        text.push_str(&format!(" rule {rule}"));
    }
    text
}

/// Looks at each record as it comes.
pub(crate) type Tap = Box<dyn FnMut(&Record) + Send>;

/// Where the records of a mesh are gathered as they come.
#[derive(Debug)]
pub(crate) struct Gathering {
    lines: Arc<std::sync::Mutex<Vec<String>>>,
    count: watch::Receiver<usize>,
    thread: std::thread::JoinHandle<()>,
}

impl Gathering {
    /// Gathers until all senders are gone. What a tap looks at is not kept.
    pub(crate) fn start(mut from: mpsc::Receiver<String>, mut tap: Option<Tap>) -> Self {
        let lines = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let (counted, count) = watch::channel(0);
        let into = Arc::clone(&lines);
        let thread = std::thread::spawn(move || {
            while let Some(line) = from.blocking_recv() {
                if let Some(tap) = &mut tap {
                    parse(&line).iter().for_each(&mut *tap);
                    continue;
                }
                let mut lines = into.lock().unwrap();
                lines.push(line);
                counted.send_replace(lines.len());
            }
        });
        Self { lines, count, thread }
    }

    /// The first record that is as asked, as soon as it is there.
    pub(crate) async fn wait_for(&self, what: &str, asked: impl Fn(&Record) -> bool) -> Record {
        self.first(what, parse, asked).await
    }

    /// The same of the lines that say "still here".
    pub(crate) async fn wait_for_progress(&self, what: &str, asked: impl Fn(&Record) -> bool) -> Record {
        self.first(what, |line| progress(json(line)), asked).await
    }

    async fn first(
        &self,
        what: &str,
        read: impl Fn(&str) -> Option<Record>,
        asked: impl Fn(&Record) -> bool,
    ) -> Record {
        let mut count = self.count.clone();
        let mut looked_at = 0;
        soon(what, async {
            loop {
                let lines = self.lines.lock().unwrap()[looked_at..].to_vec();
                looked_at += lines.len();
                if let Some(found) = lines.iter().filter_map(|line| read(line)).find(&asked) {
                    return found;
                }
                count.wait_for(|&count| count > looked_at).await.expect("no more records come");
            }
        })
        .await
    }

    /// All of them, when no more come.
    pub(crate) fn finish(self) -> Records {
        self.thread.join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        Records(lines.iter().filter_map(|line| parse(line)).collect())
    }
}

/// The record of a line. Lines that say "still here" are not records.
fn parse(line: &str) -> Option<Record> {
    let value = json(line);
    value.get("progress").is_none().then_some(Record(value))
}

fn progress(value: Value) -> Option<Record> {
    value.get("progress").is_some().then_some(Record(value))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}: {line}"))
}

/// Every record that a mesh left.
#[derive(Debug)]
pub struct Records(Vec<Record>);

impl Records {
    /// All, in the order they came.
    pub fn all(&self) -> &[Record] {
        &self.0
    }

    /// Those of one side.
    pub fn side(&self, side: &str) -> Vec<&Record> {
        self.0.iter().filter(|record| record.side() == side).collect()
    }

    /// The one record of one side.
    #[track_caller]
    pub fn only(&self, side: &str) -> &Record {
        match self.side(side).as_slice() {
            [record] => record,
            others => panic!("not exactly one {side} record but {}: {others:#?}", others.len()),
        }
    }

    /// The one record of one side and path.
    #[track_caller]
    pub fn of(&self, side: &str, path: &str) -> &Record {
        let side_and_path: Vec<_> =
            self.0.iter().filter(|record| record.side() == side && record.path() == path).collect();
        match side_and_path.as_slice() {
            [record] => record,
            others => panic!("not exactly one {side} record of {path} but {others:#?} among {:#?}", self.0),
        }
    }

    /// The one outbound and the one inbound record of a path, the second naming the first.
    #[track_caller]
    pub fn pair(&self, path: &str) -> (&Record, &Record) {
        let (outbound, inbound) = (self.of("outbound", path), self.of("inbound", path));
        assert_eq!(inbound.text("/previous"), outbound.id(), "the inbound record names the outbound one");
        (outbound, inbound)
    }
}
