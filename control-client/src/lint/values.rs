//! What follows from conditions: which can't be met together, and which are met whenever others are.

use std::borrow::Cow;

use crate::snapshot::{Attribute, AuthorizationRule, Condition, ValueMatch};

/// Combinations of `from` and `to` of one rule that are looked at; of a rule with more, nothing is said.
const MAX_COMBINATIONS: usize = 64;

/// Each way for a rule to match: one `from`, one `to`, and all of `when`. `None`: too many.
pub(super) fn combinations(rule: &AuthorizationRule) -> Option<Vec<Vec<&Condition>>> {
    let one_of = |clauses: &'_ [Vec<Condition>]| clauses.len().max(1);
    if one_of(&rule.from) * one_of(&rule.to) > MAX_COMBINATIONS {
        return None;
    }
    let none: &[Condition] = &[];
    let mut all = Vec::new();
    for from in 0..one_of(&rule.from) {
        for to in 0..one_of(&rule.to) {
            let from = rule.from.get(from).map_or(none, Vec::as_slice);
            let to = rule.to.get(to).map_or(none, Vec::as_slice);
            all.push(from.iter().chain(to).chain(&rule.when).collect());
        }
    }
    Some(all)
}

/// Why none of the ways can be met; `None`: one may be.
pub(super) fn contradictory(combinations: &[Vec<&Condition>]) -> Option<String> {
    let mut why = None;
    for conditions in combinations {
        why = Some(contradiction(conditions)?);
    }
    why
}

fn contradiction(conditions: &[&Condition]) -> Option<String> {
    for (at, condition) in conditions.iter().enumerate() {
        let excluded = |value: &ValueMatch| {
            // Positive and negative values of one source or operation are two conditions of one attribute.
            let same = conditions.iter().filter(|other| other.attribute == condition.attribute);
            let mut not = same.flat_map(|other| &other.not_values);
            not.any(|not| is_within(&condition.attribute, value, not))
        };
        if !condition.values.is_empty() && condition.values.iter().all(excluded) {
            return Some(format!("all values of {} are excluded as well", condition.field));
        }
        for other in &conditions[at + 1..] {
            let both = other.attribute == condition.attribute
                && has_one_value(&condition.attribute)
                && !condition.values.is_empty()
                && !other.values.is_empty();
            let apart = |value: &ValueMatch| {
                other
                    .values
                    .iter()
                    .all(|value_of_other| are_apart(&condition.attribute, value, value_of_other))
            };
            if both && condition.values.iter().all(apart) {
                return Some(format!("{} and {} have no value in common", condition.field, other.field));
            }
        }
    }
    None
}

/// Whether what meets the one condition meets the other.
pub(super) fn implies(given: &Condition, wanted: &Condition) -> bool {
    if given.attribute != wanted.attribute {
        return false;
    }
    let attribute = &given.attribute;
    let within =
        |value: &ValueMatch, list: &[ValueMatch]| list.iter().any(|wide| is_within(attribute, value, wide));
    let positive = wanted.values.is_empty()
        || (!given.values.is_empty() && given.values.iter().all(|value| within(value, &wanted.values)));
    let negative = wanted.not_values.iter().all(|not| {
        let apart = !given.values.is_empty()
            && has_one_value(attribute)
            && given.values.iter().all(|value| are_apart(attribute, value, not));
        apart || within(not, &given.not_values)
    });
    positive && negative
}

/// Attributes that are one text, address or number, and not a list of them.
pub(super) fn has_one_value(attribute: &Attribute) -> bool {
    !matches!(
        attribute,
        Attribute::RequestAudiences | Attribute::RequestClaim(_) | Attribute::SourceNamespace
    )
}

/// Whether the wide value matches whatever the narrow one matches.
fn is_within(attribute: &Attribute, narrow: &ValueMatch, wide: &ValueMatch) -> bool {
    use ValueMatch::{Cidr, Exact, PathTemplate, Prefix, Suffix};
    if narrow == wide {
        return true;
    }
    if let (Cidr(narrow), Cidr(wide)) = (narrow, wide) {
        return wide.contains(narrow);
    }
    if !is_plain_text(attribute) {
        return false;
    }
    let fold = |text| fold(attribute, text);
    match (narrow, wide) {
        (Exact(text), ValueMatch::Present) => !text.is_empty(),
        (Prefix(text) | Suffix(text), ValueMatch::Present) => !text.is_empty(),
        (PathTemplate(_), ValueMatch::Present) => true,
        (Exact(text), Exact(other)) => fold(text) == fold(other),
        (Exact(text) | Prefix(text), Prefix(prefix)) => fold(text).starts_with(&*fold(prefix)),
        (Exact(text) | Suffix(text), Suffix(suffix)) => fold(text).ends_with(&*fold(suffix)),
        (PathTemplate(template), Prefix(prefix)) => {
            template.split('{').next().is_some_and(|literal| literal.starts_with(&**prefix))
        }
        _ => false,
    }
}

/// Whether no text, address or number matches both.
fn are_apart(attribute: &Attribute, a: &ValueMatch, b: &ValueMatch) -> bool {
    use ValueMatch::{Cidr, Exact, Port, Prefix, Suffix};
    match (a, b) {
        (Port(a), Port(b)) => return a != b,
        (Cidr(a), Cidr(b)) => return !a.contains(b) && !b.contains(a),
        _ => {}
    }
    if !is_plain_text(attribute) {
        return false;
    }
    let fold = |text| fold(attribute, text);
    match (a, b) {
        (Exact(a), Exact(b)) => fold(a) != fold(b),
        (Exact(text), Prefix(prefix)) | (Prefix(prefix), Exact(text)) => {
            !fold(text).starts_with(&*fold(prefix))
        }
        (Exact(text), Suffix(suffix)) | (Suffix(suffix), Exact(text)) => {
            !fold(text).ends_with(&*fold(suffix))
        }
        (Prefix(a), Prefix(b)) => {
            let (a, b) = (fold(a), fold(b));
            !a.starts_with(&*b) && !b.starts_with(&*a)
        }
        _ => false,
    }
}

/// Attributes whose values mean what they say: a principal's trust domain stands for others as well.
pub(super) fn is_plain_text(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Host | Attribute::Method | Attribute::Path | Attribute::Header(_) | Attribute::Sni
    )
}

/// As texts of the attribute are compared.
pub(super) fn fold<'t>(attribute: &Attribute, text: &'t str) -> Cow<'t, str> {
    match attribute {
        Attribute::Host if text.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            text.to_ascii_lowercase().into()
        }
        _ => text.into(),
    }
}
