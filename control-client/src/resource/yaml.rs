//! Strict YAML: text to trees that remember their lines. The only file that names the YAML library.
//!
//! The event parser of serde-saphyr is used rather than its serde side, because one mistake must not hide the next
//! one, and every mistake needs a line.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Tag};

/// Nodes that aliases may create in one document: enough for any honest use, too few for a billion laughs.
const MAX_ALIAS_NODES: usize = 100_000;

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Node,
}

/// A part of a file that is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) line: u32,
    pub(crate) message: String,
}

/// A value and the line it starts on, from 1.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

/// The JSON data model, as Kubernetes reads YAML.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    List(Vec<Node>),
    /// In the order of the file; keys may repeat here, see [`Node::duplicate_keys`].
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) value: Node,
}

/// The pieces of a file between its `---` lines, each with the number of lines before it.
///
/// `---` at the start of a line can't be content, not even in a block or quoted scalar, so the cuts are exact. Pieces
/// are parsed one by one: a broken one doesn't take the others along, and only one tree is in memory at a time.
pub(crate) fn pieces(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    // Directives and comments belong to the document that the next `---` starts.
    let mut only_preface = true;
    for (line, text_line) in (0..).zip(text.split_inclusive('\n')) {
        let marker = text_line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty());
        if marker && !only_preface {
            pieces.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, line);
        }
        only_preface &= !marker && (text_line.starts_with(['%', '#']) || text_line.trim().is_empty());
        offset += text_line.len();
    }
    pieces.push((start_line, &text[start..]));
    pieces
}

/// Parses the documents of one piece.
pub(crate) fn parse(piece: &str, lines_before: u32) -> Result<Vec<Document>, SyntaxError> {
    let options = granit_parser::options! { emit_comments: false };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(piece, options) {
        let (event, span) = next.map_err(|error| SyntaxError {
            line: to_line(error.marker().line(), lines_before),
            message: format!("not YAML: {}", error.info()),
        })?;
        let line = to_line(span.start.line(), lines_before);
        builder.event(event, line).map_err(|message| SyntaxError { line, message })?;
    }
    Ok(builder.documents)
}

impl Node {
    /// The value of `key`, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Every entry whose key was used before in the same mapping.
    pub(crate) fn duplicate_keys(&self) -> Vec<&Entry> {
        let mut found = Vec::new();
        self.collect_duplicates(&mut found);
        found
    }

    fn collect_duplicates<'a>(&'a self, found: &mut Vec<&'a Entry>) {
        match &self.value {
            Value::List(items) => items.iter().for_each(|item| item.collect_duplicates(found)),
            Value::Map(entries) => {
                let mut seen = HashSet::new();
                for (number, entry) in entries.iter().enumerate() {
                    let repeated = if entries.len() <= 8 {
                        entries[..number].iter().any(|earlier| earlier.key == entry.key)
                    } else {
                        !seen.insert(entry.key.as_str())
                    };
                    if repeated {
                        found.push(entry);
                    }
                    entry.value.collect_duplicates(found);
                }
            }
            _ => {}
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
            _ => 0,
        }
    }
}

fn to_line(line: usize, offset: u32) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX).saturating_add(offset)
}

/// Builds trees from events, without recursion.
struct Builder {
    documents: Vec<Document>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    /// Nodes that anchors and aliases may still hold.
    alias_nodes: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            documents: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            alias_nodes: MAX_ALIAS_NODES,
        }
    }
}

/// A collection that has not ended.
struct Open {
    anchor: usize,
    node: Node,
    /// In a mapping: the key whose value comes next.
    key: Option<(String, u32)>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<(), String> {
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())?;
                if self.takes_key() {
                    return self.key(text.into_owned(), line);
                }
                self.complete(Node { line, value }, anchor)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.start(Value::List(Vec::new()), line, anchor, tag.as_deref())?
            }
            Event::MappingStart(_, anchor, tag) => {
                self.start(Value::Map(Vec::new()), line, anchor, tag.as_deref())?
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.complete(open.node, open.anchor)?;
                }
            }
            Event::Alias(id) => {
                let mut node =
                    self.anchors.get(&id).cloned().ok_or("an alias inside of what it stands for")?;
                let size = node.size();
                self.alias_nodes = self.alias_nodes.checked_sub(size).ok_or("aliases expand to too much")?;
                node.line = line;
                if self.takes_key() {
                    let key = node.as_str().map(str::to_owned).ok_or("only a string can be a key")?;
                    return self.key(key, line);
                }
                self.complete(node, 0)?;
            }
            Event::UnresolvedAlias(name) => return Err(format!("unknown alias *{name}")),
            _ => {}
        }
        Ok(())
    }

    fn takes_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.key.is_none() && matches!(open.node.value, Value::Map(_)))
    }

    fn key(&mut self, key: String, line: u32) -> Result<(), String> {
        if let Some(open) = self.open.last_mut() {
            open.key = Some((key, line));
        }
        Ok(())
    }

    fn start(&mut self, value: Value, line: u32, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        if self.takes_key() {
            return Err("only a string can be a key".into());
        }
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            return Err(format!("tag {tag} is not read"));
        }
        self.open.push(Open { anchor, node: Node { line, value }, key: None });
        Ok(())
    }

    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            let size = node.size();
            self.alias_nodes = self.alias_nodes.checked_sub(size).ok_or("anchors hold too much")?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(Document { root: node }),
            Some(Open { node: Node { value: Value::List(items), .. }, .. }) => items.push(node),
            Some(Open { node: Node { value: Value::Map(entries), .. }, key, .. }) => {
                let (key, line) = key.take().ok_or("a value without a key")?;
                entries.push(Entry { key, line, value: node });
            }
            Some(_) => return Err("a value inside a scalar".into()),
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(Value::String(text.to_owned())),
        Some(tag)
            if tag.is_yaml_core_schema() && matches!(tag.suffix(), "int" | "bool" | "float" | "null") =>
        {
            Ok(plain(text))
        }
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix() == "str" => Ok(Value::String(text.to_owned())),
        Some(tag) => Err(format!("tag {tag} is not read")),
    }
}

/// The core schema of YAML 1.2, with the booleans of YAML 1.1, because `kubectl` reads those as booleans too: a label
/// `on` that is a string here and a boolean there would be a trap.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::String(text.to_owned());
    }
    let radix = |prefix: &str, radix| {
        digits.strip_prefix(prefix).and_then(|rest| i64::from_str_radix(rest, radix).ok())
    };
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Value::Int(if text.starts_with('-') { -number } else { number });
    }
    let number_like = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    let leading_zero = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    if !number_like || leading_zero {
        return Value::String(text.to_owned());
    }
    match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(number), _) => Value::Int(number),
        (_, Ok(number)) if number.is_finite() => Value::Float(number),
        _ => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        let mut documents = parse(text, 0).unwrap();
        assert_eq!(documents.len(), 1);
        documents.remove(0).root
    }

    fn all(text: &str) -> Vec<Result<Vec<Document>, SyntaxError>> {
        pieces(text).into_iter().map(|(lines, piece)| parse(piece, lines)).collect()
    }

    #[test]
    fn scalars_as_kubernetes_reads_them() {
        let root = one(
            "a: 1\nb: '1'\nc: yes\nd: ~\ne: 1.5\nf: v1\ng: 2024-01-01T00:00:00Z\nh: 10.0.0.1\ni: -3\nj: 0x10\nk: 1e3\nl: 007",
        );
        let text = |key| format!("{:?}", root.get(key).unwrap().value);
        assert_eq!(text("a"), "Int(1)");
        assert_eq!(text("b"), "String(\"1\")");
        assert_eq!(text("c"), "Bool(true)");
        assert_eq!(text("d"), "Null");
        assert_eq!(text("e"), "Float(1.5)");
        assert_eq!(text("f"), "String(\"v1\")");
        assert_eq!(text("g"), "String(\"2024-01-01T00:00:00Z\")");
        assert_eq!(text("h"), "String(\"10.0.0.1\")");
        assert_eq!(text("i"), "Int(-3)");
        assert_eq!(text("j"), "Int(16)");
        assert_eq!(text("k"), "Float(1000.0)");
        assert_eq!(text("l"), "String(\"007\")");
    }

    #[test]
    fn lines_and_documents() {
        let found = all("# c\na: 1\n---\n\nb:\n- x\n- y: 2\n---\n");
        let root = |index: usize| &found[index].as_ref().unwrap()[0].root;
        let b = root(1).get("b").unwrap();
        assert_eq!((root(0).line, b.line, found.len()), (2, 6, 3));
        let Value::List(items) = &b.value else { panic!() };
        assert_eq!((items[0].line, items[1].line), (6, 7));
    }

    #[test]
    fn where_documents_begin() {
        let starts = |text| pieces(text).into_iter().map(|(line, _)| line).collect::<Vec<_>>();
        assert_eq!(starts(""), [0]);
        assert_eq!(starts("a\n---\nb\n--- c\n---"), [0, 1, 3, 4]);
        assert_eq!(starts("%YAML 1.2\n# c\n\n---\na: 1\n"), [0]);
        assert_eq!(starts("---\na: |\n  ---\n  x\n----\n---x\n"), [0]);
        assert_eq!(
            all("%YAML 1.2\n---\na: 1\n---\r\nb: 1\r\n").iter().filter(|piece| piece.is_ok()).count(),
            2
        );
    }

    #[test]
    fn one_broken_document_does_not_take_the_others_along() {
        let found = all("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert!(found[0].is_ok() && found[2].is_ok());
        let line = found[1].as_ref().unwrap_err().line;
        assert!((3..=4).contains(&line), "{line}");
    }

    #[test]
    fn aliases_are_bounded_and_duplicates_found() {
        let root = one("a: &x {k: v}\nb: *x\n");
        assert_eq!(root.get("b").unwrap().get("k").unwrap().as_str(), Some("v"));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(","));
        }
        assert!(parse(&bomb, 0).unwrap_err().message.contains("too much"));
        assert!(parse("a: &a [*a]", 0).is_err());
        let doubled = one("a: 1\nb: {c: 1, c: 2}\na: 3\n");
        let lines: Vec<_> = doubled.duplicate_keys().iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(lines, [("c", 2), ("a", 3)]);
    }

    #[test]
    fn tags_and_complex_keys_are_refused() {
        assert!(parse("a: !Ref x", 0).is_err());
        assert!(parse("? [a]\n: b", 0).is_err());
        assert_eq!(one("a: !!str 1").get("a").unwrap().as_str(), Some("1"));
    }
}
