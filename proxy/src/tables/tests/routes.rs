//! Routes by cases of Gateway API precedence, and against a naive twin.

use std::cmp::Reverse;

use control_client::snapshot::*;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::{backend, objects, tables};
use crate::tables::{RouteAttributes, RouteChoice, ServicePortId, Tables};

fn route(object: u32, rule: u16, matches: Vec<RouteMatch>) -> RouteRule {
    let backend = WeightedBackend { backend: Some(0), name: "a:80".into(), weight: 1, filters: Vec::new() };
    RouteRule {
        object,
        rule,
        created: Some(0),
        matches,
        filters: Vec::new(),
        backends: vec![backend],
        request_timeout: None,
        backend_timeout: None,
        retry: None,
    }
}

fn with_routes(routes: Vec<RouteRule>) -> Policy {
    let port = ServicePort { port: 80, protocol: None, routes, backend: 0 };
    let service = Service {
        host: "a".into(),
        names: Vec::new(),
        addresses: Vec::new(),
        object: None,
        ports: vec![port],
    };
    Policy {
        objects: objects(200),
        services: vec![service],
        backends: vec![backend("a:80")],
        ..Policy::default()
    }
}

fn exact(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Exact(path.into()), ..RouteMatch::default() }
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::default() }
}

fn pattern(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Regex(path.into()), ..RouteMatch::default() }
}

fn with_header(base: RouteMatch, name: &str, value: &str) -> RouteMatch {
    RouteMatch { headers: vec![(name.into(), TextMatch::Exact(value.into()))], ..base }
}

/// Object and rule of the choice.
fn chosen(tables: &Tables, request: &RouteAttributes<'_>) -> Option<(u32, u16)> {
    let id: ServicePortId = tables.service_by_authority("a", 80).unwrap();
    match tables.match_route(id, request) {
        RouteChoice::Rule(rule) => Some((rule.policy.object_index()?, rule.policy.rule_index()?)),
        RouteChoice::NoRoute => None,
        RouteChoice::Default(_) => panic!("there are routes"),
    }
}

fn chosen_of(
    routes: Vec<RouteRule>,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
) -> Option<(u32, u16)> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    chosen(&tables(&with_routes(routes)), &RouteAttributes { method, path, query, headers })
}

#[test]
fn paths() {
    let routes = || {
        vec![
            route(0, 0, vec![prefix("/")]),
            route(0, 1, vec![prefix("/api/")]),
            route(0, 2, vec![prefix("/api/v1")]),
            route(0, 3, vec![exact("/api/v1")]),
            route(0, 4, vec![exact("/x"), exact("/y")]),
        ]
    };
    for (path, rule) in [
        ("/", 0),
        ("/apis", 0),
        ("/api", 1),
        ("/api/", 1),
        ("/api/v2", 1),
        ("/api/v12", 1),
        ("/api/v1", 3),
        ("/api/v1/", 2),
        ("/api/v1/x", 2),
        ("/y", 4),
        ("/x/", 0),
        ("/API", 0),
    ] {
        assert_eq!(chosen_of(routes(), &Method::GET, path, &HeaderMap::new()), Some((0, rule)), "{path}");
    }
    assert_eq!(chosen_of(vec![route(0, 0, vec![exact("/x")])], &Method::GET, "/z", &HeaderMap::new()), None);
    assert_eq!(chosen_of(vec![route(0, 0, vec![])], &Method::GET, "/any", &HeaderMap::new()), Some((0, 0)));
}

#[test]
fn patterns_match_whole_paths_and_come_last() {
    let routes = || {
        vec![
            route(0, 0, vec![pattern("/a|/b")]),
            route(0, 1, vec![pattern("/item/[0-9]+")]),
            route(0, 2, vec![prefix("/item/7")]),
        ]
    };
    for (path, rule) in [
        ("/a", Some(0)),
        ("/b", Some(0)),
        ("/a/b", None),
        ("/x/b", None),
        ("/item/12", Some(1)),
        ("/item/7", Some(2)),
        ("/item/7x", None),
    ] {
        let found = chosen_of(routes(), &Method::GET, path, &HeaderMap::new());
        assert_eq!(found, rule.map(|rule| (0, rule)), "{path}");
    }
}

#[test]
fn conditions_break_ties_in_order() {
    let method = RouteMatch { method: Some("GET".into()), ..prefix("/") };
    let query = RouteMatch { query: vec![("q".into(), TextMatch::Exact("1".into()))], ..prefix("/") };
    let routes = || {
        vec![
            route(0, 0, vec![prefix("/")]),
            route(0, 1, vec![query.clone()]),
            route(0, 2, vec![with_header(prefix("/"), "x-a", "1")]),
            route(0, 3, vec![method.clone()]),
        ]
    };
    let mut headers = HeaderMap::new();
    assert_eq!(chosen_of(routes(), &Method::GET, "/?q=1", &headers), Some((0, 3)));
    assert_eq!(chosen_of(routes(), &Method::PUT, "/?q=1", &headers), Some((0, 1)));
    assert_eq!(
        chosen_of(routes(), &Method::PUT, "/?q=2&q=1", &headers),
        Some((0, 0)),
        "only the first counts"
    );
    headers.insert("x-a", HeaderValue::from_static("1"));
    assert_eq!(chosen_of(routes(), &Method::PUT, "/?q=1", &headers), Some((0, 2)));
    assert_eq!(chosen_of(routes(), &Method::GET, "/?q=1", &headers), Some((0, 3)));
}

#[test]
fn the_oldest_route_then_the_first_name_then_the_first_rule_wins() {
    let created = |created, each: RouteRule| RouteRule { created, ..each };
    let ask = |routes| chosen_of(routes, &Method::GET, "/", &HeaderMap::new());
    let any = |object, rule| route(object, rule, vec![prefix("/")]);
    assert_eq!(ask(vec![created(Some(5), any(0, 0)), created(Some(4), any(1, 0))]), Some((1, 0)));
    assert_eq!(ask(vec![created(None, any(0, 0)), created(Some(4), any(1, 0))]), Some((1, 0)));
    assert_eq!(ask(vec![any(1, 0), any(0, 1), any(0, 0)]), Some((0, 0)));
}

#[test]
fn a_bad_pattern_is_refused_even_if_it_would_balance() {
    for bad in ["(", "a)|(b", "a{1000}{1000}"] {
        let policy = with_routes(vec![route(0, 0, vec![pattern(bad)])]);
        let error = Tables::compile(&policy, &[crate::tables::BackendId(0)]).unwrap_err();
        assert_eq!(error.field, "matches.path", "{error}");
    }
}

#[test]
fn rules_keep_their_key_over_versions_and_share_it_with_no_other() {
    let key = |tables: &Tables, path: &str| {
        let headers = HeaderMap::new();
        let request = RouteAttributes { method: &Method::GET, path, query: None, headers: &headers };
        match tables.match_route(tables.service_by_authority("a", 80).unwrap(), &request) {
            RouteChoice::Rule(rule) => rule.key,
            choice => panic!("{choice:?}"),
        }
    };
    let rules = || vec![route(0, 0, vec![exact("/x")]), route(0, 1, vec![exact("/y")])];
    let one = tables(&with_routes(rules()));
    let mut more = rules();
    more.insert(0, route(1, 0, vec![exact("/z")]));
    let two = tables(&with_routes(more));
    assert_eq!(key(&one, "/x"), key(&two, "/x"));
    assert_ne!(key(&one, "/x"), key(&one, "/y"));
    assert_ne!(key(&two, "/x"), key(&two, "/z"));
}

/// All matches sorted by precedence, asked one by one.
fn naive(routes: &[RouteRule], request: &RouteAttributes<'_>) -> Option<(u32, u16)> {
    let default = [RouteMatch::default()];
    let mut all: Vec<(&RouteRule, &RouteMatch)> = Vec::new();
    for rule in routes {
        let matches = if rule.matches.is_empty() { &default[..] } else { &rule.matches };
        all.extend(matches.iter().map(|each| (rule, each)));
    }
    all.sort_by_key(|(rule, each)| {
        let (rank, length) = match &each.path {
            PathMatch::Exact(path) => (0, path.len()),
            PathMatch::Prefix(path) => (1, path.trim_end_matches('/').len()),
            PathMatch::Regex(pattern) => (2, pattern.len()),
        };
        let age = rule.created.unwrap_or(i64::MAX);
        let counts = (Reverse(each.headers.len()), Reverse(each.query.len()));
        (rank, Reverse(length), each.method.is_none(), counts, age, rule.object, rule.rule)
    });
    let found = all.into_iter().find(|(_, each)| holds(each, request));
    found.map(|(rule, _)| (rule.object, rule.rule))
}

fn holds(each: &RouteMatch, request: &RouteAttributes<'_>) -> bool {
    let whole =
        |pattern: &str, text: &str| regex::Regex::new(&format!("^({pattern})$")).unwrap().is_match(text);
    let text = |test: &TextMatch, text: &str| match test {
        TextMatch::Exact(exact) => exact == text,
        TextMatch::Regex(pattern) => whole(pattern, text),
    };
    let path = match &each.path {
        PathMatch::Exact(path) => path == request.path,
        PathMatch::Prefix(prefix) => {
            let segments = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
            segments(request.path).starts_with(&segments(prefix.trim_end_matches('/')))
        }
        PathMatch::Regex(pattern) => whole(pattern, request.path),
    };
    let query = request.query.unwrap_or("");
    path && each.method.as_ref().is_none_or(|method| method == request.method.as_str())
        && each.headers.iter().all(|(name, test)| {
            let lines: Vec<_> = request.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
            !lines.is_empty() && text(test, &lines.join(","))
        })
        && each.query.iter().all(|(name, test)| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| key == name).is_some_and(|(_, value)| text(test, value))
        })
}

const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/c/12"];
const HEADERS: &[&str] = &["x-a", "x-b", "x-c"];

fn random_route(dice: &mut SmallRng, object: u32, rule: u16) -> RouteRule {
    let matches = (0..dice.random_range(0..3)).map(|_| random_match(dice)).collect();
    let created = dice.random_bool(0.8).then(|| dice.random_range(0..3));
    RouteRule { created, ..route(object, rule, matches) }
}

fn random_match(dice: &mut SmallRng) -> RouteMatch {
    let path = *PATHS.choose(dice).unwrap();
    let path = match dice.random_range(0..5) {
        0 | 1 => PathMatch::Exact(path.into()),
        2 | 3 => PathMatch::Prefix(path.into()),
        _ => PathMatch::Regex((*["/a.*", "/c/[0-9]+", ".*"].choose(dice).unwrap()).into()),
    };
    let test = |dice: &mut SmallRng| {
        if dice.random_bool(0.8) {
            TextMatch::Exact((*["1", "2", "1,2"].choose(dice).unwrap()).into())
        } else {
            TextMatch::Regex("[12]".into())
        }
    };
    let names = HEADERS.iter().filter(|_| dice.random_bool(0.3)).collect::<Vec<_>>();
    let headers = names.into_iter().map(|name| ((*name).into(), test(dice))).collect();
    let query = if dice.random_bool(0.2) { vec![("q".into(), test(dice))] } else { Vec::new() };
    let method = dice.random_bool(0.3).then(|| (*["GET", "PUT"].choose(dice).unwrap()).into());
    RouteMatch { path, method, headers, query }
}

fn compare(seed: u64) -> Result<(), TestCaseError> {
    let mut dice = SmallRng::seed_from_u64(seed);
    let count = *[1u32, 3, 10, 60, 150].choose(&mut dice).unwrap();
    let routes: Vec<_> = (0..count).map(|n| random_route(&mut dice, n / 2, (n % 2) as u16)).collect();
    let tables = tables(&with_routes(routes.clone()));
    for _ in 0..15 {
        let mut headers = HeaderMap::new();
        for _ in 0..dice.random_range(0..4) {
            let name = HeaderName::from_static(HEADERS.choose(&mut dice).unwrap());
            headers.append(name, HeaderValue::from_static(["1", "2"].choose(&mut dice).unwrap()));
        }
        let method = if dice.random_bool(0.5) { Method::GET } else { Method::PUT };
        let query = [None, Some("q=1"), Some("x=3&q=2&q=1"), Some("q")].choose(&mut dice).copied().unwrap();
        let path = PATHS.choose(&mut dice).unwrap();
        let request = RouteAttributes { method: &method, path, query, headers: &headers };
        prop_assert_eq!(chosen(&tables, &request), naive(&routes, &request), "{:?}", request);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_choice_differs_from_the_naive_one(seed: u64) {
        compare(seed)?;
    }
}
