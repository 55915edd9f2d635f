//! The routes of one service port: compiled rules, and the match of highest precedence for a request
//! (Gateway API `HTTPRouteMatch`, `HTTPRouteRule.matches`).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{self, BackendIndex, PathMatch, Retry, RouteMatch, RouteRule, TextMatch};
use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName, Method};

use super::attributes::header_text;
use super::filters::{self, Filters};
use super::headers::HeaderIndex;
use super::prefixes::Prefixes;
use super::regexes::Regexes;
use super::split::{Split, SplitKey};
use super::{CompileError, Located};
use crate::decision::PolicyRef;

/// What routes look at.
#[derive(Debug, Clone, Copy)]
pub struct RouteAttributes<'a> {
    /// Case-sensitive.
    pub method: &'a Method,
    /// Normalised, without query.
    pub path: &'a str,
    /// Without `?`.
    pub query: Option<&'a str>,
    /// As received.
    pub headers: &'a HeaderMap,
}

/// Where a request to a service goes.
#[derive(Debug, Clone, Copy)]
pub enum RouteChoice<'a> {
    /// By a rule of a route.
    Rule(&'a Rule),
    /// The service has no routes: to its backend.
    Default(BackendIndex),
    /// The service has routes and none matches.
    NoRoute,
}

/// A rule of a route.
#[derive(Debug)]
pub struct Rule {
    /// Route and number of the rule.
    pub policy: PolicyRef,
    /// Names the split of this rule over versions of the tables.
    pub key: SplitKey,
    /// Applied before those of the backend.
    pub filters: Filters,
    /// Chooses one of `backends`, by index.
    pub split: Split,
    /// In listed order.
    pub backends: Box<[RuleBackend]>,
    /// `timeouts.request`; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// `timeouts.backendRequest`; `None`: no limit.
    pub backend_timeout: Option<Duration>,
    /// `retry`.
    pub retry: Option<Retry>,
}

/// A backendRef of a rule.
#[derive(Debug)]
pub struct RuleBackend {
    /// `None`: an invalid reference, which keeps its share and answers 500.
    pub backend: Option<BackendIndex>,
    /// As records name it.
    pub name: Arc<str>,
    /// Of `Split::total`.
    pub weight: u32,
    /// Applied after those of the rule.
    pub filters: Filters,
}

/// All matches of all rules, in order of precedence, found by their paths.
#[derive(Debug, Default)]
pub(super) struct Routes {
    rules: Box<[Rule]>,
    /// Sorted: a lower position wins.
    matches: Box<[Match]>,
    exact: HashMap<Box<str>, Bucket, RandomState>,
    /// Without trailing `/`, so that the root is the empty prefix.
    prefixes: Prefixes<Bucket>,
    regexes: Box<[(regex::Regex, u32)]>,
}

/// What a match asks besides its path.
#[derive(Debug)]
struct Match {
    rule: u32,
    method: Option<Method>,
    headers: Box<[(HeaderName, TextTest)]>,
    query: Box<[(Box<str>, TextTest)]>,
}

#[derive(Debug)]
enum TextTest {
    Exact(Box<str>),
    Regex(regex::bytes::Regex),
}

impl Routes {
    pub(super) fn compile(
        service: &str,
        rules: &[RouteRule],
        objects: &[snapshot::ObjectRef],
        regexes: &mut Regexes,
    ) -> Result<Self, CompileError> {
        let default = [RouteMatch::default()];
        let mut sorted = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { &default[..] } else { &rule.matches };
            sorted.extend(
                matches.iter().map(|each| (precedence(rule, each, objects), index as u32, rule, each)),
            );
        }
        // Stable: matches of one rule stay in listed order.
        sorted.sort_by(|a, b| a.0.cmp(&b.0));

        let mut matches = Vec::with_capacity(sorted.len());
        let mut exact: HashMap<&str, Vec<u32>, RandomState> = HashMap::default();
        let mut prefixes: HashMap<&str, Vec<u32>, RandomState> = HashMap::default();
        let mut by_regex = Vec::new();
        for (position, (_, index, rule, each)) in sorted.iter().enumerate() {
            let position = position as u32;
            matches.push(Match::compile(*index, each, regexes).located(rule.object, objects, "matches")?);
            match &each.path {
                PathMatch::Exact(path) => exact.entry(path).or_default().push(position),
                PathMatch::Prefix(path) => prefixes.entry(trimmed(path)).or_default().push(position),
                PathMatch::Regex(pattern) => {
                    let regex = regexes.text(pattern).located(rule.object, objects, "matches.path")?;
                    by_regex.push((regex, position));
                }
            }
        }
        let bucket = |positions: Vec<u32>| Bucket::new(positions, &matches);
        Ok(Self {
            exact: exact.into_iter().map(|(path, positions)| (path.into(), bucket(positions))).collect(),
            prefixes: Prefixes::new(
                prefixes.into_iter().map(|(path, positions)| (path.as_bytes().into(), bucket(positions))),
            ),
            regexes: by_regex.into(),
            rules: rules
                .iter()
                .map(|rule| Rule::compile(service, rule, objects))
                .collect::<Result<_, _>>()?,
            matches: matches.into(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether no rule sends anything to a backend.
    pub(super) fn only_redirect(&self) -> bool {
        self.rules.iter().all(|rule| rule.filters.redirect().is_some())
    }

    /// Those that rules name, in listed order.
    pub(super) fn backends(&self) -> impl Iterator<Item = BackendIndex> {
        self.rules.iter().flat_map(|rule| &rule.backends).filter_map(|named| named.backend)
    }

    /// The rule of the first match in order of precedence: exact paths, then prefixes from the longest, then patterns.
    pub(super) fn find(&self, request: &RouteAttributes<'_>) -> Option<&Rule> {
        let found = self
            .exact
            .get(request.path)
            .and_then(|bucket| bucket.first(&self.matches, request))
            .or_else(|| self.by_prefix(request))
            .or_else(|| self.by_regex(request))?;
        self.rules.get(self.matches[found as usize].rule as usize)
    }

    fn by_prefix(&self, request: &RouteAttributes<'_>) -> Option<u32> {
        let path = request.path.as_bytes();
        let whole_segments = |prefix: &[u8]| path.get(prefix.len()).is_none_or(|&next| next == b'/');
        self.prefixes
            .of(path)
            .filter(|(prefix, _)| whole_segments(prefix))
            .find_map(|(_, bucket)| bucket.first(&self.matches, request))
    }

    fn by_regex(&self, request: &RouteAttributes<'_>) -> Option<u32> {
        self.regexes
            .iter()
            .find(|(regex, position)| {
                self.matches[*position as usize].holds(request) && regex.is_match(request.path)
            })
            .map(|(_, position)| *position)
    }
}

/// Precedence of a match as a key that sorts first what wins: Gateway API's order (exact path, longest prefix, method,
/// most header and query conditions, oldest route, name, rule), patterns after prefixes as Istio ranks them.
fn precedence<'a>(
    rule: &RouteRule,
    each: &RouteMatch,
    objects: &'a [snapshot::ObjectRef],
) -> impl Ord + use<'a> {
    let (rank, length) = match &each.path {
        PathMatch::Exact(path) => (0, path.len()),
        PathMatch::Prefix(path) => (1, trimmed(path).len()),
        PathMatch::Regex(pattern) => (2, pattern.len()),
    };
    let object = objects.get(rule.object as usize);
    (
        (rank, Reverse(length)),
        (each.method.is_none(), Reverse(each.headers.len()), Reverse(each.query.len())),
        (rule.created.is_none(), rule.created),
        object.map(|object| (&object.namespace, &object.name)),
        rule.rule,
    )
}

fn trimmed(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

impl Rule {
    fn compile(
        service: &str,
        rule: &RouteRule,
        objects: &[snapshot::ObjectRef],
    ) -> Result<Self, CompileError> {
        let route =
            objects.get(rule.object as usize).map(|object| (&object.kind, &object.namespace, &object.name));
        // What filters replace by the prefix that was matched are of rules with one such match.
        let prefix = match rule.matches.as_slice() {
            [RouteMatch { path: PathMatch::Prefix(prefix), .. }] => prefix.as_str(),
            _ => "/",
        };
        let weights: Vec<u32> = rule.backends.iter().map(|backend| backend.weight).collect();
        let backends = rule.backends.iter().map(|backend| {
            Ok(RuleBackend {
                backend: backend.backend,
                name: backend.name.as_str().into(),
                weight: backend.weight,
                filters: Filters::compile(&backend.filters, prefix).located(
                    rule.object,
                    objects,
                    "backendRefs.filters",
                )?,
            })
        });
        Ok(Self {
            policy: PolicyRef::rule(rule.object, rule.rule),
            key: SplitKey::of((service, route, rule.rule)),
            filters: Filters::compile(&rule.filters, prefix).located(rule.object, objects, "filters")?,
            split: Split::new(&weights),
            backends: backends.collect::<Result<_, CompileError>>()?,
            request_timeout: rule.request_timeout,
            backend_timeout: rule.backend_timeout,
            retry: rule.retry.clone(),
        })
    }
}

impl Match {
    fn compile(rule: u32, each: &RouteMatch, regexes: &mut Regexes) -> Result<Self, String> {
        let method = each.method.as_ref().map(|method| {
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is no method"))
        });
        let mut headers = Vec::new();
        for (header, test) in &each.headers {
            headers.push((filters::name(header)?, TextTest::compile(test, regexes)?));
        }
        let mut query = Vec::new();
        for (name, test) in &each.query {
            query.push((name.as_str().into(), TextTest::compile(test, regexes)?));
        }
        Ok(Self { rule, method: method.transpose()?, headers: headers.into(), query: query.into() })
    }

    fn holds(&self, request: &RouteAttributes<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|(name, test)| {
                header_text(request.headers, name).is_some_and(|text| test.holds(text.as_bytes()))
            })
            && self.query.iter().all(|(name, test)| {
                query_value(request.query, name).is_some_and(|value| test.holds(value.as_bytes()))
            })
    }

    /// The exact header conditions: what a bucket files a match under.
    fn exact_headers(&self) -> impl Iterator<Item = (&HeaderName, &str)> {
        self.headers.iter().filter_map(|(name, test)| match test {
            TextTest::Exact(text) => Some((name, &**text)),
            TextTest::Regex(_) => None,
        })
    }
}

impl TextTest {
    fn compile(test: &TextMatch, regexes: &mut Regexes) -> Result<Self, String> {
        Ok(match test {
            TextMatch::Exact(text) => Self::Exact(text.as_str().into()),
            TextMatch::Regex(pattern) => Self::Regex(regexes.bytes(pattern)?),
        })
    }

    fn holds(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// The first value of a query parameter, as sent (Envoy does not decode it either).
fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Buckets from this size on file their matches by header value.
const LARGE: usize = 16;

/// The matches of one path, by position.
#[derive(Debug)]
struct Bucket {
    by_header: HeaderIndex<Box<[u32]>>,
    rest: Box<[u32]>,
}

impl Bucket {
    fn new(positions: Vec<u32>, matches: &[Match]) -> Self {
        if positions.len() < LARGE {
            return Self { by_header: HeaderIndex::default(), rest: positions.into() };
        }
        let mut frequency: HashMap<(&HeaderName, &str), usize, RandomState> = HashMap::default();
        for &position in &positions {
            for condition in matches[position as usize].exact_headers() {
                *frequency.entry(condition).or_default() += 1;
            }
        }
        let mut filed: HashMap<(&HeaderName, &str), Vec<u32>, RandomState> = HashMap::default();
        let mut rest = Vec::new();
        for &position in &positions {
            // Under its rarest condition.
            match matches[position as usize].exact_headers().min_by_key(|condition| frequency[condition]) {
                Some(condition) => filed.entry(condition).or_default().push(position),
                None => rest.push(position),
            }
        }
        let mut by_header = HeaderIndex::default();
        for ((name, value), positions) in filed {
            by_header.insert(name.clone(), Some(value.as_bytes()), positions.into());
        }
        Self { by_header, rest: rest.into() }
    }

    /// The first position that matches.
    fn first(&self, matches: &[Match], request: &RouteAttributes<'_>) -> Option<u32> {
        let first_of = |positions: &[u32], before: u32| {
            let candidates = positions.iter().take_while(|&&position| position < before);
            candidates.copied().find(|&position| matches[position as usize].holds(request))
        };
        let mut best = None;
        if !self.by_header.is_empty() {
            self.by_header.visit(request.headers, |positions| {
                best = first_of(positions, best.unwrap_or(u32::MAX)).or(best);
            });
        }
        first_of(&self.rest, best.unwrap_or(u32::MAX)).or(best)
    }
}
