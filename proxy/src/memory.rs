//! What decisions leave behind for later ones, on one worker: where splits stand, who was told what, which servers speak
//! first.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tables::{Rule, SplitKey, SplitState};

/// What decisions leave behind for later ones.
#[derive(Default)]
pub struct Memory {
    /// Where each route's split stands.
    pub splits: Splits,
    /// Who was told lately what else was considered.
    pub considered: Considered,
    /// Where servers spoke first.
    pub server_first: ServerFirst,
    /// Answers of providers and limiters that requests wait for.
    pub asking: Asking,
}

/// Bounds how many requests wait for an answer of a provider or limiter at once: each holds its memory while it does.
#[derive(Default)]
pub struct Asking(Rc<Cell<usize>>);

/// One that waits.
pub struct Waiting(Rc<Cell<usize>>);

/// Requests of one worker that wait at once.
const MAX_ASKING: usize = 4096;

impl Asking {
    /// One more waits; `None`: too many do.
    pub fn begin(&self) -> Option<Waiting> {
        let waiting = self.0.get();
        (waiting < MAX_ASKING).then(|| {
            self.0.set(waiting + 1);
            Waiting(Rc::clone(&self.0))
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Bounds how often a refusal is explained in its record: once a second for a caller, some times a second in all.
/// Reading every policy costs more than the refusal itself, and a refused caller must not choose how often.
#[derive(Default)]
pub struct Considered(RefCell<Second>);

#[derive(Default)]
struct Second {
    began: Option<Instant>,
    told: HashSet<Option<Arc<str>>>,
}

/// Explained refusals of one worker in one second.
const CONSIDERED_PER_SECOND: usize = 5;

impl Considered {
    /// Whether this refusal of `caller` may be explained.
    pub fn allows(&self, caller: Option<&Arc<str>>) -> bool {
        self.allows_at(Instant::now(), caller)
    }

    fn allows_at(&self, now: Instant, caller: Option<&Arc<str>>) -> bool {
        let second = &mut *self.0.borrow_mut();
        if second.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1)) {
            second.began = Some(now);
            second.told.clear();
        }
        second.told.len() < CONSIDERED_PER_SECOND && second.told.insert(caller.cloned())
    }
}

/// Where the splits of this worker stand, by route. Survives a change of tables.
#[derive(Default)]
pub struct Splits {
    states: RefCell<HashMap<SplitKey, SplitState, foldhash::fast::RandomState>>,
}

/// Most splits remembered at once. Routes that are gone leave theirs behind, and are forgotten by starting over.
const MAX_SPLITS: usize = 100_000;

impl Splits {
    /// Index of the backend that the next request of `rule` goes to; `None` when no backend has a weight.
    pub fn choose(&self, rule: &Rule) -> Option<usize> {
        match rule.split.constant() {
            Some(constant) => constant,
            None => {
                let mut states = self.states.borrow_mut();
                if states.len() > MAX_SPLITS {
                    states.clear();
                }
                states.entry(rule.key).or_default().choose(&rule.split)
            }
        }
    }
}

/// Outbound destinations where the server spoke first, so that the next client need not wait for detection.
#[derive(Default)]
pub struct ServerFirst {
    until: RefCell<HashMap<SocketAddr, Instant, foldhash::fast::RandomState>>,
}

/// How long "the server spoke first" is believed.
const SERVER_FIRST_FOR: Duration = Duration::from_secs(60);
/// Destinations remembered at once.
const SERVER_FIRST_MAX: usize = 1024;

impl ServerFirst {
    /// The server at `destination` spoke first a short while ago.
    pub fn believes(&self, destination: SocketAddr) -> bool {
        self.believes_at(Instant::now(), destination)
    }

    fn believes_at(&self, now: Instant, destination: SocketAddr) -> bool {
        let mut until = self.until.borrow_mut();
        match until.get(&destination) {
            Some(&end) if end > now => true,
            Some(_) => {
                until.remove(&destination);
                false
            }
            None => false,
        }
    }

    /// It did just now.
    pub fn note(&self, destination: SocketAddr) {
        self.note_at(Instant::now(), destination);
    }

    fn note_at(&self, now: Instant, destination: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if until.len() >= SERVER_FIRST_MAX {
            until.retain(|_, end| *end > now);
            if until.len() >= SERVER_FIRST_MAX {
                return;
            }
        }
        until.insert(destination, now + SERVER_FIRST_FOR);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::reload::tests::generation_of;
    use crate::tables::{RouteAttributes, RouteChoice};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_caller_is_told_once_a_second_and_few_callers_are() {
        let considered = Considered::default();
        let start = Instant::now();
        let callers: Vec<Arc<str>> = (0..9).map(|n| format!("spiffe://a/{n}").into()).collect();
        assert!(considered.allows_at(start, Some(&callers[0])));
        assert!(!considered.allows_at(start, Some(&callers[0])));
        assert!(considered.allows_at(start, None), "plaintext is a caller of its own");
        let told = callers[1..].iter().filter(|caller| considered.allows_at(start, Some(caller))).count();
        assert_eq!(told, CONSIDERED_PER_SECOND - 2);
        assert!(considered.allows_at(start + SECOND, Some(&callers[0])));
    }

    #[test]
    fn that_a_server_spoke_first_is_forgotten_in_time_and_never_piles_up() {
        let server_first = ServerFirst::default();
        let start = Instant::now();
        let server = |port| SocketAddr::from(([10, 0, 0, 1], port));
        server_first.note_at(start, server(1));
        assert!(server_first.believes_at(start + SERVER_FIRST_FOR / 2, server(1)));
        assert!(!server_first.believes_at(start, server(2)));
        assert!(!server_first.believes_at(start + SERVER_FIRST_FOR, server(1)));

        for port in 0..SERVER_FIRST_MAX as u16 + 10 {
            server_first.note_at(start, server(port));
        }
        assert_eq!(server_first.until.borrow().len(), SERVER_FIRST_MAX);
        server_first.note_at(start + SERVER_FIRST_FOR, server(9999));
        assert_eq!(server_first.until.borrow().len(), 1, "what is over makes room");
    }

    #[test]
    fn a_split_goes_on_over_new_tables() {
        let splits = Splits::default();
        let mut to_v2 = 0;
        for number in 1..=100 {
            let generation = generation_of(number, include_str!("cli/demo/config.yaml"));
            let service = generation.tables.service_by_authority("ratings.bookinfo", 9080).unwrap();
            let asked = RouteAttributes {
                method: &Method::GET,
                path: "/ratings/1",
                query: None,
                headers: &HeaderMap::new(),
            };
            let RouteChoice::Rule(rule) = generation.tables.match_route(service, &asked) else {
                panic!("the demo has a route");
            };
            to_v2 += splits.choose(rule).unwrap();
        }
        assert_eq!(splits.states.borrow().len(), 1);
        // Fresh states would stray as chance does: here the error is that of one stratum.
        assert!((8..=12).contains(&to_v2), "{to_v2} of 100 went to a backend of weight 10/100");
    }
}
