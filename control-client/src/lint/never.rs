//! What a rule asks for that nothing has here: paths that no request has once they are in one form, users where nobody asks
//! for tokens.

use super::values::combinations;
use super::{Found, Item};
use crate::resource::Object;
use crate::resource::security::Scope;
use crate::snapshot::{Attribute, AuthorizationRule, Condition, PathNormalization, ValueMatch};

impl Found<'_> {
    /// What to say of a rule.
    pub(super) fn unmet(&self, item: &Item<'_>, rule: &AuthorizationRule) -> Vec<String> {
        let mut said = self.dot_segments(rule);
        said.extend(self.nobody_asks_for_users(item, rule));
        said
    }

    fn dot_segments(&self, rule: &AuthorizationRule) -> Vec<String> {
        if self.path_normalization == PathNormalization::None {
            return Vec::new();
        }
        let conditions = rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        let of_paths = conditions.filter(|condition| condition.attribute == Attribute::Path);
        let mut said = Vec::new();
        for condition in of_paths {
            for value in condition.values.iter().chain(&condition.not_values) {
                if let Some(path) = with_dot_segment(value) {
                    said.push(format!(
                        "{}: `{path}` matches no request: paths have no `.` or `..` segments when policies see them",
                        condition.field
                    ));
                }
            }
        }
        said
    }

    /// Without a token there is no user.
    fn nobody_asks_for_users(&self, item: &Item<'_>, rule: &AuthorizationRule) -> Option<String> {
        let of_user = |condition: &&Condition| condition.attribute.of_user() && !condition.values.is_empty();
        let mut asked = None;
        for way in combinations(rule)? {
            asked = Some(way.into_iter().find(of_user)?);
        }
        let asked = asked?;
        let asks = |object: &Object, scope: &Scope| {
            let namespace = &*object.meta.namespace;
            let root = self.root_namespace;
            let may_share = [namespace, item.namespace()].contains(&root) || namespace == item.namespace();
            may_share && may_overlap(scope, &item.spec.scope)
        };
        if self.asking.iter().any(|(object, scope)| asks(object, scope)) {
            return None;
        }
        Some(format!(
            "matches no request: {} is of end users, and no RequestAuthentication that is here takes their tokens there",
            asked.field
        ))
    }
}

/// Whether something may be selected by both.
fn may_overlap(one: &Scope, other: &Scope) -> bool {
    match (one, other) {
        (Scope::Labels(one), Scope::Labels(other)) => {
            one.iter().all(|(key, value)| other.get(key).is_none_or(|also| also == value))
        }
        _ => true,
    }
}

fn with_dot_segment(value: &ValueMatch) -> Option<&str> {
    let (path, ends) = match value {
        ValueMatch::Exact(path) | ValueMatch::PathTemplate(path) | ValueMatch::Suffix(path) => (path, true),
        ValueMatch::Prefix(path) => (path, false),
        _ => return None,
    };
    let inside = ["/./", "/../"].iter().any(|segment| path.contains(segment));
    let last = ends && ["/.", "/.."].iter().any(|segment| path.ends_with(segment));
    (inside || last).then_some(path)
}
