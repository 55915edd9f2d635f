//! Digests of objects and of the policy they form together, for records and auditors.
//!
//! An object's digest is SHA-256 over its canonical JSON (RFC 8785): group, kind, namespace, name, creation time if
//! set, the annotations that mean something, and the spec as written, with nothing defaulted. Re-ordered, re-commented
//! and re-split copies have the same digest, and so has the same object written in another API version.

use std::borrow::Cow;
use std::fmt::Write;

use crate::resource::yaml::{Node, Value};

/// What goes into an object's digest besides its fields.
pub(crate) struct Identity<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) created: Option<&'a str>,
    /// Already limited to those that mean something.
    pub(crate) annotations: Vec<(&'a str, &'a str)>,
}

/// Digest of one object; `fields` are its top-level fields that count: `spec`, or what a kind has in its place.
pub(crate) fn object(identity: &Identity<'_>, fields: &[(&str, &Node)]) -> String {
    let mut members: Vec<(&str, Member<'_>)> = vec![
        ("group", Member::Text(identity.group)),
        ("kind", Member::Text(identity.kind)),
        ("namespace", Member::Text(identity.namespace)),
        ("name", Member::Text(identity.name)),
    ];
    if let Some(created) = identity.created {
        members.push(("creationTimestamp", Member::Text(created)));
    }
    if !identity.annotations.is_empty() {
        members.push(("annotations", Member::Texts(&identity.annotations)));
    }
    members.extend(fields.iter().map(|(name, node)| (*name, Member::Tree(node))));
    let mut out = String::with_capacity(1024);
    write_object(&mut out, members, |out, member| match member {
        Member::Text(text) => write_string(out, text),
        Member::Texts(texts) => write_object(out, texts.to_vec(), write_string),
        Member::Tree(node) => write_node(out, node),
    });
    sha256(out.as_bytes())
}

/// Digest over the digests of objects, in whatever order they come.
pub(crate) fn of_set<'a>(digests: impl Iterator<Item = Cow<'a, str>>) -> String {
    let mut digests: Vec<Cow<'_, str>> = digests.collect();
    digests.sort_unstable();
    sha256(digests.join("\n").as_bytes())
}

/// Whether an annotation changes what an object means.
pub(crate) fn annotation_counts(key: &str) -> bool {
    key == "istio.io/dry-run" || key.starts_with("writ.dev/")
}

fn sha256(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(71);
    out.push_str("sha256:");
    for byte in fips::sha256(bytes) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

enum Member<'a> {
    Text(&'a str),
    Texts(&'a [(&'a str, &'a str)]),
    Tree(&'a Node),
}

fn write_node(out: &mut String, node: &Node) {
    match &node.value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(number) => write_int(out, *number),
        Value::Float(number) => write_float(out, *number),
        Value::String(text) => write_string(out, text),
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_node(out, item);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            let members = entries.iter().map(|entry| (entry.key.as_str(), &entry.value)).collect();
            write_object(out, members, write_node);
        }
    }
}

/// RFC 8785 sorts members by UTF-16 code units. Equal keys keep their order; such an object is refused anyway.
fn write_object<T>(out: &mut String, mut members: Vec<(&str, T)>, mut write: impl FnMut(&mut String, T)) {
    members.sort_by(|(a, _), (b, _)| {
        if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
    });
    out.push('{');
    for (index, (key, member)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, key);
        out.push(':');
        write(out, member);
    }
    out.push('}');
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// JSON numbers are doubles; a whole number that a double can't hold is written as the double nearest to it.
fn write_int(out: &mut String, number: i64) {
    const SAFE: i64 = 1 << 53;
    if (-SAFE..=SAFE).contains(&number) {
        let _ = write!(out, "{number}");
    } else {
        #[expect(clippy::cast_precision_loss, reason = "RFC 8785 asks for it")]
        write_float(out, number as f64);
    }
}

/// ECMAScript's Number::toString, as RFC 8785 asks.
fn write_float(out: &mut String, number: f64) {
    if number == 0.0 {
        out.push('0');
        return;
    }
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    if number < 0.0 {
        out.push('-');
    }
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    if count <= point && point <= 21 {
        let _ = write!(out, "{digits}{}", zeros(point - count));
    } else if 0 < point && point <= 21 {
        let (whole, rest) = digits.split_at(usize::try_from(point).unwrap_or(0));
        let _ = write!(out, "{whole}.{rest}");
    } else if -6 < point && point <= 0 {
        let _ = write!(out, "0.{}{digits}", zeros(-point));
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let sign = if point > 0 { '+' } else { '-' };
        let _ = write!(out, "{first}{dot}{rest}e{sign}{}", (point - 1).abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::yaml;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        let documents = yaml::parse(text, 0).unwrap();
        let mut out = String::new();
        write_node(&mut out, &documents[0].root);
        out
    }

    #[test]
    fn canonical_json() {
        assert_eq!(canonical("b: 1\na: [true, ~, 'x\"y']\n"), r#"{"a":[true,null,"x\"y"],"b":1}"#);
        assert_eq!(
            canonical("\"\\u20ac\": 1\n\"\\r\": 2\n\"\\U0001F600\": 3\n\"\\ufb33\": 4\n"),
            "{\"\\r\":2,\"€\":1,\"😀\":3,\"\u{fb33}\":4}"
        );
    }

    #[test]
    fn numbers_as_ecmascript_writes_them() {
        let cases = [
            (1.0, "1"),
            (-1.5, "-1.5"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (0.000001, "0.000001"),
            (0.0000001, "1e-7"),
            (123456.789, "123456.789"),
            (5e-324, "5e-324"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (-0.0, "0"),
            (333333333.3333333, "333333333.3333333"),
        ];
        for (number, wanted) in cases {
            let mut out = String::new();
            write_float(&mut out, number);
            assert_eq!(out, wanted);
        }
        assert_eq!(canonical("[1, 1.0, 9007199254740993]"), "[1,1,9007199254740992]");
    }

    fn digest_of(text: &str) -> String {
        let documents = yaml::parse(text, 0).unwrap();
        let identity =
            Identity { group: "g", kind: "K", namespace: "n", name: "x", created: None, annotations: vec![] };
        object(&identity, &[("spec", &documents[0].root)])
    }

    proptest! {
        #[test]
        fn order_of_keys_does_not_matter_and_values_do(map in proptest::collection::btree_map("[a-z]{1,6}", 0..1000i32, 1..8)) {
            let lines: Vec<_> = map.iter().map(|(k, v)| format!("k{k}: {v}\n")).collect();
            let backwards: String = lines.iter().rev().map(|line| format!("# c\n{line}")).collect();
            prop_assert_eq!(digest_of(&lines.concat()), digest_of(&backwards));
            let (key, value) = map.iter().next().unwrap();
            let changed = lines.concat().replacen(&format!("k{key}: {value}\n"), &format!("k{key}: {}\n", value + 1), 1);
            prop_assert_ne!(digest_of(&lines.concat()), digest_of(&changed));
        }
    }
}
