//! Reads fields out of a tree and collects every mistake, with its field path and line.
//!
//! Paths are found by looking for the node in its tree, and only when there is something to say about it: the usual
//! object is clean and pays nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::yaml::{Node, Value};
use crate::verdict::Severity;

/// Mistakes kept of one object; an object with more is not read by a person anyway.
const MAX_PROBLEMS: usize = 64;

/// Something wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) field: String,
    pub(crate) message: String,
    pub(crate) line: u32,
}

/// One object being read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    root: &'a Node,
    problems: RefCell<Vec<Problem>>,
    good: Cell<bool>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(root: &'a Node) -> Self {
        Self { root, problems: RefCell::new(Vec::new()), good: Cell::new(true) }
    }

    /// The object itself.
    pub(crate) fn at_root(&'a self) -> At<'a> {
        At { node: self.root, reader: self }
    }

    /// Values whose key was used before in the same mapping.
    pub(crate) fn duplicate_keys(&'a self) -> impl Iterator<Item = At<'a>> {
        self.root.duplicate_keys().into_iter().map(move |entry| At { node: &entry.value, reader: self })
    }

    /// Whether nothing so far refuses the object.
    pub(crate) fn is_good(&self) -> bool {
        self.good.get()
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    fn push(&self, severity: Severity, place: impl FnOnce() -> Place, message: String) {
        if severity == Severity::Error {
            self.good.set(false);
        }
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            let Place { field, line } = place();
            let problem = Problem { severity, field, message, line };
            // What is read twice is wrong once.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
}

/// A value at its place in the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    reader: &'a Reader<'a>,
}

/// A mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    at: At<'a>,
}

impl<'a> At<'a> {
    pub(crate) fn error(self, message: impl Into<String>) {
        self.reader.push(Severity::Error, || self.place(), message.into());
    }

    pub(crate) fn warn(self, message: impl Into<String>) {
        self.reader.push(Severity::Warning, || self.place(), message.into());
    }

    /// Says what becomes of an object as it is written; of one that is refused something else does.
    pub(crate) fn warn_if_good(self, message: &str) {
        if self.reader.is_good() {
            self.warn(message);
        }
    }

    pub(crate) fn line(self) -> u32 {
        self.node.line
    }

    /// The path to it, as diagnostics have it.
    pub(crate) fn field(self) -> String {
        self.place().field
    }

    /// A mapping of which every key must be known.
    pub(crate) fn fields(self, known: &[&str]) -> Option<Fields<'a>> {
        let fields = self.open_fields()?;
        if let Value::Map(entries) = &self.node.value {
            for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
                let hint = match closest(&entry.key, known) {
                    Some(name) => format!("unknown field; did you mean `{name}`?"),
                    None => format!("unknown field; known here: {}", known.join(", ")),
                };
                At { node: &entry.value, ..self }.error(hint);
            }
        }
        Some(fields)
    }

    /// A mapping with any keys.
    pub(crate) fn open_fields(self) -> Option<Fields<'a>> {
        match &self.node.value {
            Value::Map(_) => Some(Fields { at: self }),
            _ => self.expected("a mapping"),
        }
    }

    /// The items of a list.
    pub(crate) fn items(self) -> impl ExactSizeIterator<Item = At<'a>> {
        let items = match &self.node.value {
            Value::List(items) => items.as_slice(),
            _ => self.expected("a list").unwrap_or_default(),
        };
        items.iter().map(move |node| At { node, ..self })
    }

    /// The keys and values of a mapping.
    pub(crate) fn entries(self) -> impl Iterator<Item = (&'a str, At<'a>)> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            _ => self.expected("a mapping").unwrap_or_default(),
        };
        entries.iter().map(move |entry| (entry.key.as_str(), At { node: &entry.value, ..self }))
    }

    pub(crate) fn str(self) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => self.expected("a string (put it in quotes)"),
            _ => self.expected("a string"),
        }
    }

    /// A string that says something.
    pub(crate) fn text(self) -> Option<String> {
        let text = self.str()?;
        if text.is_empty() {
            self.error("must not be empty");
            return None;
        }
        Some(text.to_owned())
    }

    pub(crate) fn texts(self) -> Vec<String> {
        self.items().filter_map(At::text).collect()
    }

    pub(crate) fn bool(self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn number<T: TryFrom<i64>>(self, least: i64, most: i64) -> Option<T> {
        match self.node.value {
            Value::Int(number) if (least..=most).contains(&number) => T::try_from(number).ok(),
            Value::Int(number) => {
                self.error(format!("{number} is out of range, must be {least} to {most}"));
                None
            }
            _ => self.expected(&format!("a whole number from {least} to {most}")),
        }
    }

    pub(crate) fn port(self) -> Option<u16> {
        self.number(1, 65535)
    }

    /// One of a list of names.
    pub(crate) fn one_of<T: Copy>(self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.str()?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.error(format!("unknown value `{text}`; must be one of {}", names.join(", ")));
        }
        found
    }

    /// Strings by key, as labels are.
    pub(crate) fn string_map(self) -> BTreeMap<String, String> {
        self.entries().filter_map(|(key, at)| Some((key.to_owned(), at.str()?.to_owned()))).collect()
    }

    pub(crate) fn is_null(self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    fn expected<T>(self, what: &str) -> Option<T> {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::String(_) => "a string".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        self.error(format!("expected {what}, found {found}"));
        None
    }

    fn place(self) -> Place {
        let mut segments = Vec::new();
        let line = find(self.reader.root, self.node, &mut segments).unwrap_or(self.node.line);
        let mut field = String::new();
        for segment in segments.iter().rev() {
            match segment {
                Segment::Key(key) if field.is_empty() => field.push_str(key),
                Segment::Key(key) if key.contains(['.', '[', '/']) => {
                    field.push('[');
                    field.push_str(key);
                    field.push(']');
                }
                Segment::Key(key) => {
                    field.push('.');
                    field.push_str(key);
                }
                Segment::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        Place { field, line }
    }
}

impl<'a> Fields<'a> {
    /// The field's value; `null` is as good as absent.
    pub(crate) fn get(self, name: &str) -> Option<At<'a>> {
        self.get_or_null(name).filter(|at| !at.is_null())
    }

    /// The field's value, even if it is `null`.
    pub(crate) fn get_or_null(self, name: &str) -> Option<At<'a>> {
        self.at.node.get(name).map(|node| At { node, ..self.at })
    }

    /// The field's value; its absence is a mistake.
    pub(crate) fn require(self, name: &str) -> Option<At<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.missing(name, "is required");
        }
        found
    }

    /// Reports about a field that isn't there.
    pub(crate) fn missing(self, name: &str, message: &str) {
        let place = || {
            let mut place = self.at.place();
            if !place.field.is_empty() {
                place.field.push('.');
            }
            place.field.push_str(name);
            place
        };
        self.at.reader.push(Severity::Error, place, message.to_owned());
    }

    pub(crate) fn at(self) -> At<'a> {
        self.at
    }

    pub(crate) fn is_empty(self) -> bool {
        matches!(&self.at.node.value, Value::Map(entries) if entries.is_empty())
    }

    /// Warns about fields that are understood and not acted on.
    pub(crate) fn not_in_force(self, names: &[&str]) {
        for at in names.iter().filter_map(|name| self.get(name)) {
            at.warn("accepted, not in force yet");
        }
    }
}

struct Place {
    field: String,
    line: u32,
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

/// The path to `wanted` in reverse, and the line to show: a mapping's value is looked for at its key.
fn find<'a>(root: &'a Node, wanted: &Node, segments: &mut Vec<Segment<'a>>) -> Option<u32> {
    if std::ptr::eq(root, wanted) {
        return Some(root.line);
    }
    match &root.value {
        Value::List(items) => items.iter().enumerate().find_map(|(index, item)| {
            let line = find(item, wanted, segments)?;
            segments.push(Segment::Index(index));
            Some(line)
        }),
        Value::Map(entries) => entries.iter().find_map(|entry| {
            let line = find(&entry.value, wanted, segments)?;
            segments.push(Segment::Key(&entry.key));
            Some(if std::ptr::eq(&entry.value, wanted) { entry.line } else { line })
        }),
        _ => None,
    }
}

/// The known name that differs least, if it is near enough to be a slip.
pub(super) fn closest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    if written.len() > 64 {
        return None;
    }
    let near = known.iter().map(|name| (distance(written, name), *name)).min()?;
    (near.0 <= 2 && near.0 < written.len()).then_some(near.1)
}

/// Levenshtein distance, letters compared without case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(!left.eq_ignore_ascii_case(right));
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::yaml;

    #[test]
    fn every_mistake_has_its_path_and_line() {
        let documents = yaml::parse("spec:\n  ruls: 1\n  rules:\n  - port: 70000\n  - port: x\n  on: maybe\n  labels:\n    a.b/c: 1\n", 0).unwrap();
        let reader = Reader::new(&documents[0].root);
        let spec = reader.at_root().fields(&["spec"]).unwrap().require("spec").unwrap();
        let fields = spec.fields(&["rules", "on", "labels", "host"]).unwrap();
        for item in fields.get("rules").unwrap().items() {
            item.fields(&["port"]).unwrap().get("port").unwrap().port();
        }
        fields.get("on").unwrap().bool();
        fields.get("labels").unwrap().string_map();
        fields.require("host");
        let found: Vec<_> = reader
            .into_problems()
            .into_iter()
            .map(|p| format!("{} {}: {}", p.line, p.field, p.message))
            .collect();
        assert_eq!(
            found,
            [
                "2 spec.ruls: unknown field; did you mean `rules`?",
                "4 spec.rules[0].port: 70000 is out of range, must be 1 to 65535",
                "5 spec.rules[1].port: expected a whole number from 1 to 65535, found a string",
                "6 spec.on: expected true or false, found a string",
                "8 spec.labels[a.b/c]: expected a string (put it in quotes), found the number 1",
                "1 spec.host: is required",
            ]
        );
    }
}
