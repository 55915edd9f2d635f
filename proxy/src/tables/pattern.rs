//! Values of conditions: the string forms of AuthorizationPolicy (Istio `security/authz/matcher`), compiled.

use control_client::snapshot::ValueMatch;

/// ORed values against one text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Values {
    /// Sorted.
    pub(super) exact: Box<[Box<[u8]>]>,
    pub(super) other: Box<[Pattern]>,
}

/// A value that is not a whole text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Pattern {
    /// `abc*`.
    Prefix(Box<[u8]>),
    /// `*abc`.
    Suffix(Box<[u8]>),
    /// `*`: present and not empty.
    Present,
    /// A path with `{*}` or `{**}`.
    Template(Template),
}

impl Values {
    /// Compiles the forms that any text attribute can have. `fold`: without case.
    pub(super) fn compile(values: &[ValueMatch], fold: bool) -> Result<Self, String> {
        let bytes = |text: &str| -> Box<[u8]> {
            if fold { text.to_ascii_lowercase().into_bytes().into() } else { text.as_bytes().into() }
        };
        let (mut exact, mut other) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                ValueMatch::Exact(text) => exact.push(bytes(text)),
                ValueMatch::Prefix(text) => other.push(Pattern::Prefix(bytes(text))),
                ValueMatch::Suffix(text) => other.push(Pattern::Suffix(bytes(text))),
                ValueMatch::Present => other.push(Pattern::Present),
                ValueMatch::PathTemplate(text) => other.push(Pattern::Template(Template::parse(text)?)),
                ValueMatch::Glob(_) | ValueMatch::Cidr(_) | ValueMatch::Port(_) => {
                    return Err(format!("{} can't be compared with a text", display(value)));
                }
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Ok(Self { exact: exact.into(), other: other.into() })
    }

    /// Compiles texts as users write them: `abc`, `abc*`, `*abc`, `*`.
    pub(super) fn of_wildcards(texts: &[String]) -> Self {
        let values: Vec<_> = texts.iter().map(|text| wildcard(text)).collect();
        // None of the four forms can fail.
        Self::compile(&values, false).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.other.is_empty()
    }

    /// True if any value matches.
    pub(super) fn match_text(&self, text: &[u8]) -> bool {
        let exact = match &*self.exact {
            [] => false,
            [only] => **only == *text,
            many => many.binary_search_by(|exact| (**exact).cmp(text)).is_ok(),
        };
        exact || self.other.iter().any(|pattern| pattern.matches(text))
    }
}

impl Pattern {
    fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Prefix(prefix) => text.starts_with(prefix),
            Self::Suffix(suffix) => text.ends_with(suffix),
            Self::Present => !text.is_empty(),
            Self::Template(template) => template.matches(text),
        }
    }
}

/// A text as users write it.
pub(super) fn wildcard(text: &str) -> ValueMatch {
    if text == "*" {
        ValueMatch::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        ValueMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        ValueMatch::Prefix(prefix.into())
    } else {
        ValueMatch::Exact(text.into())
    }
}

/// A value as its user wrote it.
pub fn display(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(text) | ValueMatch::Glob(text) | ValueMatch::PathTemplate(text) => text.clone(),
        ValueMatch::Prefix(text) => format!("{text}*"),
        ValueMatch::Suffix(text) => format!("*{text}"),
        ValueMatch::Present => "*".into(),
        ValueMatch::Cidr(net) => net.to_string(),
        ValueMatch::Port(port) => port.to_string(),
    }
}

/// A path template: `{*}` is one segment that is not empty, `{**}` any rest, slashes included.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Template {
    /// Before the first operator.
    pub(super) literal: Box<[u8]>,
    /// What follows each `{*}`.
    segments: Box<[Box<[u8]>]>,
    /// What follows `{**}`, if there is one; it comes last.
    rest: Option<Box<[u8]>>,
}

impl Template {
    /// Parses a template (Istio `security.CheckValidPathTemplate`).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let error = |what: &str| Err(format!("path template {text:?}: {what}"));
        if !text.starts_with('/') {
            return error("must begin with /");
        }
        let operators = text.split('/').filter(|segment| segment.contains(['{', '}', '*']));
        for segment in operators {
            if segment != "{*}" && segment != "{**}" {
                return error("{*} and {**} must be whole segments, and * stands nowhere else");
            }
        }
        let (before, rest) = match text.split_once("{**}") {
            None => (text, None),
            Some((before, rest)) if !rest.contains('{') => (before, Some(rest.as_bytes().into())),
            Some(_) => return error("{**} must be the last operator"),
        };
        let mut literals = before.split("{*}").map(|literal| literal.as_bytes().into());
        let literal = literals.next().unwrap_or_default();
        Ok(Self { literal, segments: literals.collect(), rest })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let Some(mut path) = path.strip_prefix(&*self.literal) else { return false };
        for literal in &self.segments {
            let end = path.iter().position(|&byte| byte == b'/').unwrap_or(path.len());
            let after = &path[end..];
            match after.strip_prefix(&**literal) {
                Some(rest) if end > 0 => path = rest,
                _ => return false,
            }
        }
        match &self.rest {
            Some(rest) => path.ends_with(rest),
            None => path.is_empty(),
        }
    }
}

/// A pattern of namespaces, each `*` any text, inside `*/ns/<pattern>/*` against a whole identity (as Istio renders it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NamespaceGlob {
    /// `/ns/<pattern>/`, split at each `*`: found in this order, without overlap.
    pieces: Box<[Box<str>]>,
}

impl NamespaceGlob {
    pub(super) fn new(pattern: &str) -> Self {
        let whole = format!("/ns/{pattern}/");
        Self { pieces: whole.split('*').map(Into::into).collect() }
    }

    /// The namespace, where the pattern is just its name.
    pub(super) fn exact(&self) -> Option<&str> {
        let [whole] = &*self.pieces else { return None };
        whole.strip_prefix("/ns/")?.strip_suffix('/').filter(|name| !name.contains('/'))
    }

    /// Against an identity with `spiffe://`.
    pub(super) fn matches(&self, identity: &str) -> bool {
        let mut rest = identity;
        self.pieces.iter().all(|piece| match rest.find(&**piece) {
            Some(at) => {
                rest = &rest[at + piece.len()..];
                true
            }
            None => false,
        })
    }
}

/// A service account, as Istio matches it: `spiffe://.+/ns/<ns>/(.+/|)sa/<sa>(/.+)?`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

impl ServiceAccount {
    /// From `namespace/name`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("{text:?} is not namespace/name")),
        }
    }

    /// Against an identity without `spiffe://`.
    pub(super) fn matches(&self, principal: &str) -> bool {
        let segments = |from: usize| principal[from..].match_indices("/ns/").map(move |(at, _)| from + at);
        segments(0).filter(|at| *at > 0).any(|at| {
            let after = principal[at + "/ns/".len()..].strip_prefix(&*self.namespace);
            after.and_then(|after| after.strip_prefix('/')).is_some_and(|tail| self.account_in(tail))
        })
    }

    /// `(.+/|)sa/<sa>(/.+)?`
    fn account_in(&self, tail: &str) -> bool {
        let named = |tail: &str| {
            let after = tail.strip_prefix("sa/").and_then(|tail| tail.strip_prefix(&*self.name));
            after.is_some_and(|after| after.is_empty() || (after.starts_with('/') && after.len() > 1))
        };
        named(tail) || tail.match_indices('/').any(|(at, _)| at > 0 && named(&tail[at + 1..]))
    }

    /// The namespace, without which no identity matches.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// A request principal: `iss/sub`, split at the last `/`, each part with its own form (Istio `requestPrincipalGenerator`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RequestPrincipal {
    issuer: Values,
    subject: Values,
}

impl RequestPrincipal {
    pub(super) fn compile(value: &ValueMatch) -> Result<Self, String> {
        let text = display(value);
        let (issuer, subject) = text.rsplit_once('/').map_or((&*text, None), |(iss, sub)| (iss, Some(sub)));
        let any = || ValueMatch::Present;
        let exact = |text: &str| ValueMatch::Exact(text.into());
        let (issuer, subject) = match (value, subject) {
            (ValueMatch::Present, _) => (any(), any()),
            (ValueMatch::Suffix(_), Some(subject)) => (wildcard(issuer), exact(subject)),
            (ValueMatch::Suffix(suffix), None) => (any(), ValueMatch::Suffix(suffix.clone())),
            (ValueMatch::Prefix(_), Some(subject)) => (exact(issuer), wildcard(subject)),
            (ValueMatch::Prefix(prefix), None) => (ValueMatch::Prefix(prefix.clone()), any()),
            (ValueMatch::Exact(_), subject) => (exact(issuer), exact(subject.unwrap_or_default())),
            _ => return Err(format!("{text} can't be compared with a request principal")),
        };
        Ok(Self { issuer: Values::compile(&[issuer], false)?, subject: Values::compile(&[subject], false)? })
    }

    /// What issuer and subject have to be, one value each.
    pub(super) fn parts(&self) -> (&Values, &Values) {
        (&self.issuer, &self.subject)
    }

    pub(super) fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.match_text(issuer.as_bytes()) && self.subject.match_text(subject.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        for (template, path, expected) in [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{*}/c", "/a/b/d", false),
            ("/a/{*}/{*}", "/a/b/c", true),
            ("/a/{*}/{*}", "/a/b", false),
            ("/{*}", "/", false),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a", false),
            ("/a/{**}", "/a/b/c", true),
            ("/{**}/c", "/a/b/c", true),
            ("/{**}/c", "/c", false),
            ("/{**}/c", "//c", true),
            ("/a/{*}/{**}", "/a/b/", true),
            ("/a/{*}/{**}", "/a/b/c/d", true),
            ("/a/{*}/x/{**}/y", "/a/b/x/1/2/y", true),
            ("/a/{*}/x/{**}/y", "/a/b/x/1/2/z", false),
        ] {
            assert_eq!(
                Template::parse(template).unwrap().matches(path.as_bytes()),
                expected,
                "{template} {path}"
            );
        }
        for bad in ["a/{*}", "/a{*}", "/{**}/{*}", "/{**}/{**}", "/a/*/{*}", "/{x}", "/{*"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces() {
        for (pattern, identity, expected) in [
            ("foo", "spiffe://td/ns/foo/sa/a", true),
            ("foo", "spiffe://td/ns/foobar/sa/a", false),
            ("foo*", "spiffe://td/ns/foobar/sa/a", true),
            ("*bar", "spiffe://td/ns/foobar/sa/a", true),
            ("f*r", "spiffe://td/ns/foobar/sa/a", true),
            ("*", "spiffe://td/ns/foo/sa/a", true),
            ("*", "spiffe://td/x", false),
            ("a", "spiffe://td/ns/foo/sa/a", false),
        ] {
            assert_eq!(NamespaceGlob::new(pattern).matches(identity), expected, "{pattern} {identity}");
        }
    }

    #[test]
    fn service_accounts() {
        for (account, principal, expected) in [
            ("foo/a", "td/ns/foo/sa/a", true),
            ("foo/a", "td/ns/foo/sa/ab", false),
            ("foo/a", "td/ns/foo/sa/a/extra", true),
            ("foo/a", "td/ns/foo/sa/a/", false),
            ("foo/a", "td/ns/foo/x/y/sa/a", true),
            ("foo/a", "td/region/eu/ns/foo/sa/a", true),
            ("foo/a", "/ns/foo/sa/a", false),
            ("foo/a", "td/ns/foobar/sa/a", false),
            ("foo/a", "td/ns/bar/sa/a", false),
        ] {
            assert_eq!(
                ServiceAccount::parse(account).unwrap().matches(principal),
                expected,
                "{account} {principal}"
            );
        }
        assert!(ServiceAccount::parse("a").is_err());
    }

    #[test]
    fn request_principals() {
        for (written, issuer, subject, expected) in [
            ("iss/sub", "iss", "sub", true),
            ("iss/sub", "iss", "sub2", false),
            ("https://a/b/sub", "https://a/b", "sub", true),
            ("*", "iss", "sub", true),
            ("*", "iss", "", false),
            ("*", "", "sub", false),
            ("iss/*", "iss", "any", true),
            ("iss/*", "iss", "", false),
            ("iss/s*", "iss", "sub", true),
            ("*/sub", "any", "sub", true),
            ("*/sub", "", "sub", false),
            ("*ss/sub", "iss", "sub", true),
            ("*b", "iss", "sub", true),
            ("is*", "iss", "sub", true),
            ("iss", "iss", "", true),
        ] {
            let principal = RequestPrincipal::compile(&wildcard(written)).unwrap();
            assert_eq!(principal.matches(issuer, subject), expected, "{written} {issuer} {subject}");
        }
    }
}
