//! What later rules say of a user whose token earlier ones took.

use super::cache::Verified;
use super::token;
use crate::decision::{PolicyRef, Reason};
use crate::jwks::Store;
use crate::tables::{Authentication, Keys, TokenRule, UserAttributes};

/// Who the user of something under way is by these rules, and by the keys of now. Nobody, where no rule asks for users.
///
/// Where the token was found plays no part: it has been shown, and is not shown again.
///
/// # Errors
/// No rule would take the token, for this reason; or no request goes on at all.
pub fn standing<'u>(
    rules: &Authentication,
    keys: &Store,
    user: Option<&'u Verified>,
) -> Result<Option<&'u UserAttributes>, (PolicyRef, Reason)> {
    if let Some(policy) = rules.quarantined {
        return Err((policy, Reason::QuarantinedPolicy));
    }
    let (Some(user), Some(first)) = (user, rules.rules.first()) else { return Ok(None) };
    let mut refused = (first.policy, Reason::JwtInvalid);
    for rule in rules.rules.iter().filter(|rule| user.attributes.issuer == *rule.issuer) {
        if !token::is_for(&user.attributes.audiences, &rule.audiences) {
            refused = (rule.policy, Reason::JwtAudience);
        } else if proves(rule, keys, user) {
            return Ok(Some(&user.attributes));
        } else {
            refused = (rule.policy, Reason::JwtInvalid);
        }
    }
    Err(refused)
}

/// Whether the key that signed the user's token is one of the rule's. One whose keys nobody knows yet says nothing against it:
/// it is asked again when they come.
fn proves(rule: &TokenRule, keys: &Store, user: &Verified) -> bool {
    match &rule.keys {
        Keys::Inline(keys) => keys.holds(&user.key),
        Keys::Remote(source) => match keys.keys(source) {
            Some(keys) => keys.holds(&user.key),
            None => !keys.was_asked_for(source),
        },
    }
}
