//! [`Readiness`]: the named conditions that must all hold before traffic is welcome, and the threads without which only a
//! restart helps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Named conditions, each holding, holding for now, or not holding, with a reason. Shared as `Arc<Readiness>`; whoever
/// owns a condition sets it.
#[derive(Debug)]
pub struct Readiness {
    conditions: Mutex<Vec<(&'static str, State)>>,
    /// Names of threads that panicked.
    lost: Mutex<Vec<String>>,
    /// Threads that are there, by name, with when they last showed that they go on.
    pulses: Mutex<Vec<(String, Pulse)>>,
    began: Instant,
}

/// A thread's signs of life.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Seconds.
    last: Arc<AtomicU64>,
    began: Instant,
}

impl Pulse {
    /// One: to be given every second.
    pub fn beat(&self) {
        self.last.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
    }
}

/// Seconds without a sign of life after which a thread is stuck. However starved of processors a machine is, one that is not
/// gets its turn.
const STUCK: u64 = 30;

#[derive(Debug)]
enum State {
    Ready,
    /// It still holds, and won't for long.
    Degraded(String),
    NotReady(String),
}

impl Readiness {
    /// Conditions of which none holds yet.
    pub fn new(names: &[&'static str]) -> Self {
        let conditions = names.iter().map(|&name| (name, State::NotReady("not yet".to_owned()))).collect();
        Self {
            conditions: Mutex::new(conditions),
            lost: Mutex::default(),
            pulses: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// The condition holds. A name that [`Readiness::new`] was not told becomes one more condition.
    pub fn ready(&self, name: &'static str) {
        self.set(name, State::Ready);
    }

    /// The condition holds, but somebody should look at it: why. Traffic stays welcome.
    pub fn degraded(&self, name: &'static str, why: impl Into<String>) {
        self.set(name, State::Degraded(why.into()));
    }

    /// The condition does not hold (any more), and why.
    pub fn not_ready(&self, name: &'static str, why: impl Into<String>) {
        self.set(name, State::NotReady(why.into()));
    }

    /// Whether all hold; then a line for each that is degraded: `degraded: identity: ..`. If not, a line for each that does
    /// not hold: `config: not yet`.
    ///
    /// # Errors
    /// The reasons.
    pub fn check(&self) -> Result<String, String> {
        self.check_live()?;
        let (mut degraded, mut missing) = (String::new(), String::new());
        for (name, state) in self.lock().iter() {
            match state {
                State::Ready => {}
                State::Degraded(why) => degraded += &format!("degraded: {name}: {why}\n"),
                State::NotReady(why) => missing += &format!("{name}: {why}\n"),
            }
        }
        if missing.is_empty() { Ok(degraded) } else { Err(missing) }
    }

    /// What a thread holds for as long as it lives: should it panic, the process is neither ready nor live any more.
    pub fn needs(self: &Arc<Self>, thread: impl Into<String>) -> Needed {
        Needed { thread: thread.into(), readiness: Arc::clone(self) }
    }

    /// Whether every thread that is needed is there, and goes on; if not, a line for each: `worker-1: panicked`.
    ///
    /// # Errors
    /// Which are gone or stuck.
    pub fn check_live(&self) -> Result<(), String> {
        self.check_live_at(self.began.elapsed().as_secs())
    }

    fn check_live_at(&self, now: u64) -> Result<(), String> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ill: String =
            lost.iter().map(|thread| format!("{thread}: panicked; restart this proxy\n")).collect();
        for (thread, pulse) in self.pulses.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let silent = now.saturating_sub(pulse.last.load(Ordering::Relaxed));
            if silent >= STUCK {
                ill += &format!("{thread}: stuck for {silent} s; restart this proxy\n");
            }
        }
        if ill.is_empty() { Ok(()) } else { Err(ill) }
    }

    fn set(&self, name: &'static str, state: State) {
        let mut conditions = self.lock();
        match conditions.iter_mut().find(|(known, _)| *known == name) {
            Some(condition) => condition.1 = state,
            None => conditions.push((name, state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, State)>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a thread that the process needs.
#[derive(Debug)]
pub struct Needed {
    thread: String,
    readiness: Arc<Readiness>,
}

impl Needed {
    /// What the thread is to show from now on that it goes on.
    pub fn pulse(&self) -> Pulse {
        let pulse = Pulse { last: Arc::default(), began: self.readiness.began };
        pulse.beat();
        let mut pulses = self.readiness.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.push((self.thread.clone(), pulse.clone()));
        pulse
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        let mut pulses = self.readiness.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.retain(|(thread, _)| *thread != self.thread);
        drop(pulses);
        if std::thread::panicking() {
            let thread = std::mem::take(&mut self.thread);
            tracing::error!(thread, "a thread panicked; restart this proxy");
            self.readiness.lost.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_must_hold() {
        let readiness = Readiness::new(&["config", "listeners"]);
        assert_eq!(readiness.check().unwrap_err(), "config: not yet\nlisteners: not yet\n");
        readiness.ready("config");
        readiness.ready("listeners");
        assert_eq!(readiness.check(), Ok(String::new()));
        readiness.degraded("config", "stale");
        assert_eq!(readiness.check().unwrap(), "degraded: config: stale\n");
        readiness.not_ready("drain", "shutting down");
        assert_eq!(readiness.check().unwrap_err(), "drain: shutting down\n", "what is missing comes alone");
    }

    #[test]
    fn a_thread_that_is_stuck_is_told_and_one_that_ended_is_not() {
        let readiness = Arc::new(Readiness::new(&[]));
        let (stuck, ended) = (readiness.needs("worker-0"), readiness.needs("worker-1"));
        let pulses = (stuck.pulse(), ended.pulse());
        assert_eq!(readiness.check_live_at(STUCK - 1), Ok(()));
        drop(ended);
        let told = "worker-0: stuck for 31 s; restart this proxy\n";
        assert_eq!(readiness.check_live_at(STUCK + 1).unwrap_err(), told);
        pulses.0.last.store(STUCK, Ordering::Relaxed);
        assert_eq!(readiness.check_live_at(STUCK + 1), Ok(()));
    }

    #[test]
    fn a_thread_that_panics_is_missed() {
        let readiness = Arc::new(Readiness::new(&[]));
        let ends = |panics: bool| {
            let needed = readiness.needs("worker-0");
            let thread = std::thread::spawn(move || {
                let _needed = needed;
                assert!(!panics, "as asked");
            });
            let _ = thread.join();
            readiness.check_live()
        };
        assert_eq!(ends(false), Ok(()));
        assert_eq!(ends(true).unwrap_err(), "worker-0: panicked; restart this proxy\n");
        assert_eq!(readiness.check().unwrap_err(), readiness.check_live().unwrap_err());
    }
}
