//! [`Thread`]: what the process can't do without, is missed when it no longer goes on, and is not waited for at the end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::admin::Readiness;

/// A named thread with a runtime of its own, without which the process is not live.
#[derive(Debug)]
pub struct Thread {
    name: String,
    handle: JoinHandle<()>,
}

/// How often it shows that it goes on: it no longer does when its runtime gets no turn.
const BEAT: Duration = Duration::from_secs(1);
/// How often its end is looked for.
const LOOK: Duration = Duration::from_millis(2);

impl Thread {
    /// Starts one.
    pub fn start(
        name: &str,
        ready: &Arc<Readiness>,
        run: impl FnOnce(&Runtime) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let needed = ready.needs(name);
        let pulse = needed.pulse();
        runtime.spawn(async move {
            loop {
                pulse.beat();
                tokio::time::sleep(BEAT).await;
            }
        });
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _needed = needed;
            run(&runtime);
        })?;
        Ok(Self { name: name.to_owned(), handle })
    }

    /// Waits until it has ended, which it has been told to.
    ///
    /// # Errors
    /// It panicked, or goes on after `deadline`, for which only the end of the process helps.
    pub fn ended_by(self, deadline: Instant) -> anyhow::Result<()> {
        while !self.handle.is_finished() {
            anyhow::ensure!(Instant::now() < deadline, "{} does not end, so it is cut off", self.name);
            std::thread::sleep(LOOK);
        }
        self.handle.join().map_err(|_| anyhow::anyhow!("{} panicked", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_end_is_not_waited_for() {
        let ready = Arc::new(Readiness::new(&[]));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let stuck = Thread::start("worker-0", &ready, move |_| wait.iter().for_each(drop)).unwrap();
        let ends = Thread::start("worker-1", &ready, |_| {}).unwrap();
        let deadline = Instant::now() + Duration::from_millis(200);
        assert_eq!(
            stuck.ended_by(deadline).unwrap_err().to_string(),
            "worker-0 does not end, so it is cut off"
        );
        assert!(ends.ended_by(deadline).is_ok(), "it has ended by now");
        drop(go);
    }
}
