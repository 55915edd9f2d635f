//! Decision records as a proxy prints them, waited for one by one.

use std::cell::RefCell;

use serde_json::Value;
use tests::program::Program;

/// The records of one proxy, which prints them on standard output.
pub struct Records<'p> {
    program: &'p Program,
    seen: RefCell<Vec<Value>>,
}

impl<'p> Records<'p> {
    pub fn of(program: &'p Program) -> Self {
        Self { program, seen: RefCell::default() }
    }

    /// Waits until this many records are there that `wanted` accepts, and gives them.
    #[track_caller]
    pub fn wait(&self, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut seen = self.seen.borrow_mut();
        let mut missing = count.saturating_sub(seen.iter().filter(|record| wanted(record)).count());
        if missing > 0 {
            let from = seen.len();
            self.program.lines_from(from, |line| {
                let record: Value =
                    serde_json::from_str(line).unwrap_or_else(|_| panic!("not a record: {line}"));
                missing -= usize::from(wanted(&record));
                seen.push(record);
                missing == 0
            });
        }
        seen.iter().filter(|record| wanted(record)).cloned().collect()
    }

    /// Waits for the one record that `wanted` accepts.
    #[track_caller]
    pub fn one(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut records = self.wait(1, wanted);
        assert_eq!(records.len(), 1, "{records:#?}");
        records.remove(0)
    }
}

/// What stands at a JSON pointer, as text; empty if nothing does.
pub fn text<'r>(record: &'r Value, pointer: &str) -> &'r str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// All checks in their order, as `pass mtls`.
pub fn checks(record: &Value) -> Vec<String> {
    let checks = record.pointer("/decision/checks").and_then(Value::as_array).unwrap();
    checks.iter().map(|check| format!("{} {}", text(check, "/outcome"), text(check, "/reason"))).collect()
}

/// The check of this name.
#[track_caller]
pub fn check<'r>(record: &'r Value, name: &str) -> &'r Value {
    let checks = record.pointer("/decision/checks").and_then(Value::as_array).unwrap();
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name}: {record:#}"))
}
