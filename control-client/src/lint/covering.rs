//! Rules by what they ask, so that those which may cover another are found without looking at all of them.

use std::borrow::Cow;
use std::collections::HashMap;

use ipnet::IpNet;

use super::values::{combinations, fold, implies, is_plain_text};
use crate::snapshot::{Attribute, AuthorizationRule, Condition, ValueMatch};

/// The ways for a rule to match.
pub(super) type Ways<'a> = Vec<Vec<&'a Condition>>;

/// Rules that may cover others; each goes by its number.
#[derive(Debug, Default)]
pub(super) struct Covering<'a> {
    rules: Vec<Ways<'a>>,
    filed: HashMap<Key<'a>, Vec<u32>>,
    /// They match always, in one of their ways.
    always: Vec<u32>,
}

/// What a way asks: one that covers another has a condition that follows from one of the other's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key<'a> {
    /// This very value.
    Value(&'a Attribute, Cow<'a, ValueMatch>),
    Prefix(&'a Attribute, Cow<'a, str>),
    Suffix(&'a Attribute, Cow<'a, str>),
    /// Any text.
    Present(&'a Attribute),
    /// That this very value is excluded.
    Excluded(&'a Attribute, &'a ValueMatch),
    /// That something is excluded, which what is allowed may lie apart from.
    Negative(&'a Attribute),
}

impl<'a> Covering<'a> {
    /// Files rules. One that can match in too many ways covers nothing.
    pub(super) fn new(rules: impl Iterator<Item = &'a AuthorizationRule>) -> Self {
        let rules: Vec<Ways<'a>> = rules.map(|rule| combinations(rule).unwrap_or_default()).collect();
        let mut frequency: HashMap<Key<'a>, usize> = HashMap::new();
        for key in rules.iter().flatten().flatten().flat_map(|condition| wanted(condition)).flatten() {
            *frequency.entry(key).or_default() += 1;
        }
        let mut covering = Self::default();
        for (number, ways) in (0..).zip(&rules) {
            for way in ways {
                // The rarest of what it asks.
                let often =
                    |keys: &Vec<Key<'_>>| keys.iter().filter_map(|key| frequency.get(key)).sum::<usize>();
                match way.iter().flat_map(|condition| wanted(condition)).min_by_key(often) {
                    Some(keys) => {
                        keys.into_iter().for_each(|key| covering.filed.entry(key).or_default().push(number));
                    }
                    None => covering.always.push(number),
                }
            }
        }
        Self { rules, ..covering }
    }

    /// The rules that may cover one that matches in these ways, in order.
    pub(super) fn candidates(&self, narrow: &[Vec<&'a Condition>]) -> Vec<u32> {
        // What covers all ways covers the first.
        let Some(first) = narrow.first() else { return Vec::new() };
        let mut found = self.always.clone();
        for condition in first {
            given(condition, &mut |key| found.extend(self.filed.get(&key).into_iter().flatten()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether a rule matches whatever these ways match. It does so condition by condition, so that this holds also of
    /// opaque connections, of which rules ask less.
    pub(super) fn covers(&self, rule: u32, narrow: &[Vec<&Condition>]) -> bool {
        let Some(ways) = self.rules.get(rule as usize) else { return false };
        let implied =
            |condition: &Condition, given: &[&Condition]| given.iter().any(|given| implies(given, condition));
        narrow.iter().all(|given| ways.iter().any(|way| way.iter().all(|each| implied(each, given))))
    }

    /// The ways of a rule.
    pub(super) fn ways(&self, rule: u32) -> &[Vec<&'a Condition>] {
        self.rules.get(rule as usize).map_or(&[], Vec::as_slice)
    }
}

/// Lists of keys, of each of which any condition has one that this follows from.
fn wanted(condition: &Condition) -> Vec<Vec<Key<'_>>> {
    let attribute = &condition.attribute;
    if condition.values.is_empty() {
        return condition.not_values.iter().map(|value| vec![excluding(attribute, value)]).collect();
    }
    vec![condition.values.iter().map(|value| holding(attribute, value)).collect()]
}

fn excluding<'a>(attribute: &'a Attribute, value: &'a ValueMatch) -> Key<'a> {
    match value {
        ValueMatch::Cidr(_) | ValueMatch::Port(_) => Key::Negative(attribute),
        _ if is_plain_text(attribute) => Key::Negative(attribute),
        _ => Key::Excluded(attribute, value),
    }
}

fn holding<'a>(attribute: &'a Attribute, value: &'a ValueMatch) -> Key<'a> {
    match value {
        ValueMatch::Cidr(net) => Key::Value(attribute, Cow::Owned(ValueMatch::Cidr(net.trunc()))),
        ValueMatch::Exact(text) if is_plain_text(attribute) => exact(attribute, text),
        ValueMatch::Prefix(text) if is_plain_text(attribute) => Key::Prefix(attribute, fold(attribute, text)),
        ValueMatch::Suffix(text) if is_plain_text(attribute) => Key::Suffix(attribute, fold(attribute, text)),
        ValueMatch::Present if is_plain_text(attribute) => Key::Present(attribute),
        value => Key::Value(attribute, Cow::Borrowed(value)),
    }
}

/// Every key of conditions that follow from this one.
fn given<'a>(condition: &'a Condition, visit: &mut dyn FnMut(Key<'a>)) {
    let attribute = &condition.attribute;
    visit(Key::Negative(attribute));
    condition.not_values.iter().for_each(|value| visit(Key::Excluded(attribute, value)));
    // What all values are within, the first is.
    match condition.values.first() {
        None => {}
        Some(ValueMatch::Cidr(net)) => {
            for wide in (0..=net.prefix_len()).filter_map(|length| IpNet::new(net.addr(), length).ok()) {
                visit(Key::Value(attribute, Cow::Owned(ValueMatch::Cidr(wide.trunc()))));
            }
        }
        Some(value) if is_plain_text(attribute) => {
            visit(Key::Present(attribute));
            match value {
                ValueMatch::Exact(text) => {
                    visit(exact(attribute, text));
                    prefixes(attribute, text, visit);
                    suffixes(attribute, text, visit);
                }
                ValueMatch::Prefix(text) => prefixes(attribute, text, visit),
                ValueMatch::Suffix(text) => suffixes(attribute, text, visit),
                ValueMatch::PathTemplate(template) => {
                    visit(Key::Value(attribute, Cow::Borrowed(value)));
                    prefixes(attribute, template.split('{').next().unwrap_or_default(), visit);
                }
                _ => {}
            }
        }
        Some(value) => visit(Key::Value(attribute, Cow::Borrowed(value))),
    }
}

fn exact<'a>(attribute: &'a Attribute, text: &str) -> Key<'a> {
    Key::Value(attribute, Cow::Owned(ValueMatch::Exact(fold(attribute, text).into_owned())))
}

/// Everything that a text begins with.
fn prefixes<'a>(attribute: &'a Attribute, text: &'a str, visit: &mut dyn FnMut(Key<'a>)) {
    let folded = fold(attribute, text);
    let ends = (0..=folded.len()).filter(|&end| folded.is_char_boundary(end));
    ends.for_each(|end| visit(Key::Prefix(attribute, part(&folded, 0..end))));
}

/// Everything that a text ends with.
fn suffixes<'a>(attribute: &'a Attribute, text: &'a str, visit: &mut dyn FnMut(Key<'a>)) {
    let folded = fold(attribute, text);
    let starts = (0..=folded.len()).filter(|&start| folded.is_char_boundary(start));
    starts.for_each(|start| visit(Key::Suffix(attribute, part(&folded, start..folded.len()))));
}

fn part<'a>(text: &Cow<'a, str>, range: std::ops::Range<usize>) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
        Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
    }
}
