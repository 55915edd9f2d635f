//! Regular expressions of routes: bounded in size, anchored to the whole text, and shared where written twice.

use std::collections::HashMap;

/// Compiled size of one pattern: above what the control client accepts, so that what it lets pass compiles here too.
/// The engine runs in time linear in the text whatever the pattern.
const SIZE_LIMIT: usize = 2 << 20;

/// The patterns met while compiling.
#[derive(Default)]
pub(super) struct Regexes {
    text: HashMap<String, regex::Regex>,
    bytes: HashMap<String, regex::bytes::Regex>,
}

impl Regexes {
    /// For paths.
    pub(super) fn text(&mut self, pattern: &str) -> Result<regex::Regex, String> {
        if let Some(known) = self.text.get(pattern) {
            return Ok(known.clone());
        }
        let built = regex::RegexBuilder::new(&whole(pattern)?).size_limit(SIZE_LIMIT).build();
        let regex = built.map_err(|error| explain(pattern, &error))?;
        self.text.insert(pattern.into(), regex.clone());
        Ok(regex)
    }

    /// For header and query values.
    pub(super) fn bytes(&mut self, pattern: &str) -> Result<regex::bytes::Regex, String> {
        if let Some(known) = self.bytes.get(pattern) {
            return Ok(known.clone());
        }
        let built = regex::bytes::RegexBuilder::new(&whole(pattern)?).size_limit(SIZE_LIMIT).build();
        let regex = built.map_err(|error| explain(pattern, &error))?;
        self.bytes.insert(pattern.into(), regex.clone());
        Ok(regex)
    }
}

/// Anchored. The pattern must stand on its own first: `a)|(b` would step out of the group.
fn whole(pattern: &str) -> Result<String, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build();
    built.map_err(|error| explain(pattern, &error))?;
    Ok(format!(r"\A(?:{pattern})\z"))
}

fn explain(pattern: &str, error: &regex::Error) -> String {
    format!("the regular expression {pattern:?} can't be used: {error}")
}
