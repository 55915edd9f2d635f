//! Rules on requests, found by what they can't match without: a path, a header, a host or a method.
//!
//! Each rule is filed under *atoms*, one of which every request that matches it must have; which ones, their rarity among
//! the rules decides. Rules without any lie in one list, from which the [`Exclusion`] takes out those that some value of
//! the request rules out. A rule that is found is then asked in full, so the index only ever spares questions.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::HeaderName;

use super::condition::{Asked, Both, RequestTest};
use super::exclusion::Exclusion;
use super::headers::HeaderIndex;
use super::pattern::{Pattern, Values};
use super::prefixes::Prefixes;
use super::rule::Residual;

/// Rules, by rank, and how to find them.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Box<[Residual]>,
    index: Bucket,
}

impl RuleSet {
    /// Files rules; they must be sorted by rank.
    pub(super) fn new(rules: Vec<Residual>) -> Self {
        let positions: Vec<u32> = (0..rules.len() as u32).collect();
        Self { index: Bucket::new(&rules, positions, ALL), rules: rules.into() }
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// All rules, by rank.
    pub(super) fn rules(&self) -> &[Residual] {
        &self.rules
    }

    /// Calls `visit` with every rule that can match, those of one list by rank, until it says that later ones of the list
    /// are of no interest. A rule may come twice.
    pub(super) fn visit<'a>(&'a self, request: &Asked<'_>, mut visit: impl FnMut(&'a Residual) -> Next) {
        self.index.visit(request, &mut |position| visit(&self.rules[position as usize]));
    }
}

/// What a visitor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Show me more of this list.
    More,
    /// The rest of this list can't win.
    Enough,
}

/// Up to so many rules are asked one by one.
const SMALL: usize = 16;

/// Dimensions of the index, as bits of a set.
type Dimensions = u8;
const PATH: Dimensions = 1;
const HEADER: Dimensions = 2;
const HOST: Dimensions = 4;
const METHOD: Dimensions = 8;
const ALL: Dimensions = PATH | HEADER | HOST | METHOD;

/// Something a request has or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Atom<'a> {
    /// The whole path.
    Path(&'a [u8]),
    /// What the path begins with.
    PathPrefix(&'a [u8]),
    /// A header's whole value; `None`: the header, whatever its value.
    Header(&'a HeaderName, Option<&'a [u8]>),
    /// The whole host, in lower case.
    Host(&'a [u8]),
    /// The method.
    Method(&'a [u8]),
}

impl<'a> Atom<'a> {
    /// How likely a request has it, roughly: breaks ties of rarity.
    fn cost(self) -> u64 {
        match self {
            Self::Path(_) | Self::Header(_, Some(_)) => 1,
            Self::PathPrefix(prefix) if prefix.len() > 4 => 2,
            Self::Host(_) => 3,
            Self::PathPrefix(_) | Self::Header(_, None) => 8,
            Self::Method(_) => 16,
        }
    }

    /// The atoms of a test's positive values, one of which a request must have; `None`: no such list.
    fn needed(test: &'a RequestTest, within: Dimensions) -> Option<Vec<Self>> {
        let (dimension, both) = dimension(test)?;
        if dimension & within == 0 || both.is.is_empty() {
            return None;
        }
        let header = match test {
            RequestTest::Header(name, _) => Some(name),
            _ => None,
        };
        match (Self::all_of(test, &both.is), header) {
            (Some(atoms), _) => Some(atoms),
            // Whatever the value has to be, the header has to be there.
            (None, Some(name)) => Some(vec![Self::Header(name, None)]),
            (None, None) => None,
        }
    }

    /// One atom for each value, where every value is one; templates stand as the prefix they begin with.
    fn all_of(test: &'a RequestTest, values: &'a Values) -> Option<Vec<Self>> {
        let exact = values.exact.iter().map(|text| Some(Self::exact(test, text)));
        let other = values.other.iter().map(|pattern| match (test, pattern) {
            (RequestTest::Path(_), Pattern::Prefix(prefix)) => Some(Self::PathPrefix(prefix)),
            (RequestTest::Path(_), Pattern::Template(template)) => Some(Self::PathPrefix(&template.literal)),
            _ => None,
        });
        exact.chain(other).collect()
    }

    /// The atoms that each rule out a request by a test's negative values; values that are none are left out.
    pub(super) fn excluding(test: &'a RequestTest) -> Vec<Self> {
        let Some((_, both)) = dimension(test) else { return Vec::new() };
        let exact = both.not.exact.iter().map(|text| Self::exact(test, text));
        let prefixes = both.not.other.iter().filter_map(|pattern| match (test, pattern) {
            (RequestTest::Path(_), Pattern::Prefix(prefix)) => Some(Self::PathPrefix(prefix)),
            _ => None,
        });
        exact.chain(prefixes).collect()
    }

    fn exact(test: &'a RequestTest, text: &'a [u8]) -> Self {
        match test {
            RequestTest::Header(name, _) => Self::Header(name, Some(text)),
            RequestTest::Host(_) => Self::Host(text),
            RequestTest::Method(_) => Self::Method(text),
            RequestTest::Path(_) | RequestTest::RemoteIp(_) | RequestTest::User(_) => Self::Path(text),
        }
    }

    fn dimension(self) -> Dimensions {
        match self {
            Self::Path(_) | Self::PathPrefix(_) => PATH,
            Self::Header(..) => HEADER,
            Self::Host(_) => HOST,
            Self::Method(_) => METHOD,
        }
    }
}

/// The dimension and values of a test that has one.
fn dimension(test: &RequestTest) -> Option<(Dimensions, &Both<Values>)> {
    match test {
        RequestTest::Path(both) => Some((PATH, both)),
        RequestTest::Header(_, both) => Some((HEADER, both)),
        RequestTest::Host(both) => Some((HOST, both)),
        RequestTest::Method(both) => Some((METHOD, both)),
        RequestTest::RemoteIp(_) | RequestTest::User(_) => None,
    }
}

/// Things filed under atoms.
#[derive(Debug)]
pub(super) struct ByAtom<V> {
    paths: HashMap<Box<[u8]>, V, RandomState>,
    prefixes: Prefixes<V>,
    headers: HeaderIndex<V>,
    hosts: HashMap<Box<[u8]>, V, RandomState>,
    methods: HashMap<Box<[u8]>, V, RandomState>,
}

impl<V> ByAtom<V> {
    pub(super) fn new<'a>(filed: impl IntoIterator<Item = (Atom<'a>, V)>) -> Self {
        let (mut paths, mut hosts, mut methods) =
            (HashMap::default(), HashMap::default(), HashMap::default());
        let (mut prefixes, mut headers) = (Vec::new(), HeaderIndex::default());
        for (atom, value) in filed {
            match atom {
                Atom::Path(path) => drop(paths.insert(path.into(), value)),
                Atom::PathPrefix(prefix) => prefixes.push((prefix.into(), value)),
                Atom::Header(name, text) => headers.insert(name.clone(), text, value),
                Atom::Host(host) => drop(hosts.insert(host.into(), value)),
                Atom::Method(method) => drop(methods.insert(method.into(), value)),
            }
        }
        Self { paths, prefixes: Prefixes::new(prefixes), headers, hosts, methods }
    }

    /// Calls `visit` with everything filed under an atom that the request has.
    pub(super) fn visit<'a>(&'a self, request: &Asked<'_>, visit: &mut dyn FnMut(&'a V)) {
        let path = request.attributes.path.as_bytes();
        if !self.paths.is_empty() {
            self.paths.get(path).into_iter().for_each(&mut *visit);
        }
        if !self.prefixes.is_empty() {
            self.prefixes.of(path).for_each(|(_, value)| visit(value));
        }
        if !self.headers.is_empty() {
            self.headers.visit(request.attributes.headers, &mut *visit);
        }
        if !self.hosts.is_empty() {
            request.host().and_then(|host| self.hosts.get(host)).into_iter().for_each(&mut *visit);
        }
        if !self.methods.is_empty() {
            self.methods.get(request.attributes.method.as_bytes()).into_iter().for_each(&mut *visit);
        }
    }
}

/// Positions of rules, by rank.
#[derive(Debug)]
enum Bucket {
    /// Asked one by one.
    List(Box<[u32]>),
    /// Asked one by one, but for those that the request rules out.
    Sieved(Exclusion),
    /// Filed by atoms, and those that have none.
    Filed(Box<(ByAtom<Bucket>, Bucket)>),
}

impl Default for Bucket {
    fn default() -> Self {
        Self::List(Box::default())
    }
}

impl Bucket {
    fn new(rules: &[Residual], positions: Vec<u32>, within: Dimensions) -> Self {
        if positions.len() <= SMALL {
            return Self::List(positions.into());
        }
        let frequency = frequency(rules, &positions, within);
        let mut filed: HashMap<Atom<'_>, Vec<u32>, RandomState> = HashMap::default();
        let mut rest = Vec::new();
        for position in positions {
            match rarest(&rules[position as usize], within, &frequency) {
                Some(atoms) => {
                    for atom in atoms {
                        let list = filed.entry(atom).or_default();
                        if list.last() != Some(&position) {
                            list.push(position);
                        }
                    }
                }
                None => rest.push(position),
            }
        }
        let rest = if rest.len() <= SMALL {
            Self::List(rest.into())
        } else {
            Self::Sieved(Exclusion::new(rules, rest))
        };
        if filed.is_empty() {
            return rest;
        }
        let buckets = filed.into_iter().map(|(atom, positions)| {
            // Of the other dimensions, the rules under one atom may still differ.
            (atom, Self::new(rules, positions, within & !atom.dimension()))
        });
        Self::Filed(Box::new((ByAtom::new(buckets), rest)))
    }

    fn visit(&self, request: &Asked<'_>, visit: &mut dyn FnMut(u32) -> Next) {
        match self {
            Self::List(positions) => {
                let _ = positions.iter().try_for_each(|&position| match visit(position) {
                    Next::More => Ok(()),
                    Next::Enough => Err(()),
                });
            }
            Self::Sieved(exclusion) => exclusion.visit(request, visit),
            Self::Filed(filed) => {
                let (by_atom, rest) = &**filed;
                rest.visit(request, visit);
                by_atom.visit(request, &mut |bucket| bucket.visit(request, visit));
            }
        }
    }
}

/// How many rules name each atom.
fn frequency<'a>(
    rules: &'a [Residual],
    positions: &[u32],
    within: Dimensions,
) -> HashMap<Atom<'a>, u64, RandomState> {
    let mut frequency = HashMap::default();
    for &position in positions {
        let tests = rules[position as usize].conditions.iter();
        for atom in tests.filter_map(|test| Atom::needed(test, within)).flatten() {
            *frequency.entry(atom).or_default() += 1;
        }
    }
    frequency
}

/// The atoms to file a rule under, one of which its requests must have; the rarest such list. `None`: there is none.
fn rarest<'a>(
    rule: &'a Residual,
    within: Dimensions,
    frequency: &HashMap<Atom<'a>, u64, RandomState>,
) -> Option<Vec<Atom<'a>>> {
    let score = |atoms: &Vec<Atom<'a>>| -> u64 {
        atoms.iter().map(|atom| frequency.get(atom).copied().unwrap_or(0) * atom.cost()).sum()
    };
    let best_of = |clause: &'a [std::sync::Arc<RequestTest>]| {
        clause.iter().filter_map(|test| Atom::needed(test, within)).min_by_key(score)
    };
    // Of ORed clauses, each has to give a list.
    let of_all = |clauses: &'a [Box<[std::sync::Arc<RequestTest>]>]| {
        let lists: Option<Vec<_>> = clauses.iter().map(|clause| best_of(clause)).collect();
        lists.filter(|lists| !lists.is_empty()).map(|lists| lists.concat())
    };
    let conditions = &rule.conditions;
    [best_of(&conditions.when), of_all(&conditions.to), of_all(&conditions.from)]
        .into_iter()
        .flatten()
        .min_by_key(score)
}
