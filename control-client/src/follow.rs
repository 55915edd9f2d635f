//! Follows a source for as long as somebody listens.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch::{self, Receiver, Sender};

use crate::health::Health;
use crate::pipeline::{Outcome, Pipeline};
use crate::report;
use crate::snapshot::Snapshot;
use crate::source::dir::Dir;
use crate::source::watch::Watch;
use crate::verdict::Diagnostic;
use crate::{Options, StartError, Workload};

struct Follower {
    dir: Dir,
    pipeline: Pipeline,
    last: Snapshot,
    /// What was said already is not said again with every update.
    reported: HashSet<Diagnostic>,
}

impl Follower {
    /// Reads, compiles, and returns what is new.
    fn refresh(&mut self) -> Option<Snapshot> {
        let files = match self.dir.read() {
            Ok(files) => files,
            Err(error) => {
                let path = self.dir.root().display();
                tracing::error!(%path, %error, "can't read the configuration; the previous one stays in force");
                let why = format!("{path} can't be read, so what was in force stays: {error}");
                return self.standing(self.pipeline.health.not_updated(why));
            }
        };
        let (snapshot, diagnostics) = match self.pipeline.update(&files) {
            Outcome::Same => return self.standing(self.pipeline.health.clone()),
            Outcome::New(loaded) => {
                report::verdicts(&loaded.snapshot.verdicts, |found| !self.reported.contains(found));
                (Some(self.take(loaded.snapshot)), loaded.diagnostics)
            }
            Outcome::Refused(diagnostics) => {
                let count = diagnostics.len();
                tracing::error!(
                    count,
                    "update refused as a whole (--config-strict); the previous one stays in force"
                );
                let why = format!(
                    "an update is refused as a whole (--config-strict){}, so what was in force stays",
                    crate::first(&diagnostics)
                );
                report::refused(diagnostics.iter().filter(|found| !self.reported.contains(*found)));
                (self.standing(self.pipeline.health.not_updated(why)), diagnostics)
            }
        };
        self.reported = diagnostics.into_iter().collect();
        snapshot
    }

    fn take(&mut self, snapshot: Snapshot) -> Snapshot {
        tracing::info!(version = snapshot.version, digest = %snapshot.policy.digest, "new configuration");
        if snapshot.health != self.last.health {
            tell(&snapshot.health);
        }
        self.last = snapshot.clone();
        snapshot
    }

    /// The same once more, if it stands otherwise than before.
    fn standing(&mut self, health: Health) -> Option<Snapshot> {
        if health == self.last.health {
            return None;
        }
        tell(&health);
        self.last.health = health;
        Some(self.last.clone())
    }
}

/// The first snapshot at once, the others as the future runs.
pub(crate) fn start(
    path: PathBuf,
    workload: Workload,
    options: Options,
) -> Result<(Receiver<Arc<Snapshot>>, impl Future<Output = ()> + Send + 'static), StartError> {
    let unreadable = |error| StartError::Unreadable { path: path.display().to_string(), error };
    std::fs::metadata(&path).map_err(unreadable)?;
    // Watched before it is read, so that no change falls between.
    let watch = Watch::new(&path);
    let mut dir = Dir::new(&path);
    let files = dir.read().map_err(unreadable)?;
    let (pipeline, loaded) = Pipeline::first(workload, &files, options.clone());
    if options.strict && loaded.diagnostics.iter().any(Diagnostic::is_mistake) {
        return Err(StartError::Strict(loaded.diagnostics));
    }
    let reported = loaded.diagnostics.iter().cloned().collect();
    let follower = Follower { dir, pipeline, last: loaded.snapshot.clone(), reported };
    report::verdicts(&loaded.snapshot.verdicts, |_| true);
    if loaded.snapshot.health != Health::Well {
        tell(&loaded.snapshot.health);
    }
    if loaded.objects == 0 {
        tracing::warn!(path = %path.display(), "no objects here: there is nothing to route to and nothing to enforce");
    }
    let (sender, receiver) = watch::channel(Arc::new(loaded.snapshot));
    Ok((receiver, follow(Arc::new(Mutex::new(follower)), watch, sender)))
}

async fn follow(follower: Arc<Mutex<Follower>>, mut watch: Watch, sender: Sender<Arc<Snapshot>>) {
    loop {
        let next_expiry = lock(&follower).pipeline.next_expiry;
        tokio::select! {
            () = sender.closed() => return,
            () = watch.changed() => {}
            () = sleep_until(next_expiry) => {}
        }
        let shared = follower.clone();
        // Compiling takes milliseconds to seconds, and reading may block.
        match tokio::task::spawn_blocking(move || lock(&shared).refresh()).await {
            Ok(Some(snapshot)) => {
                sender.send_replace(Arc::new(snapshot));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "compiling the configuration failed; the previous one stays in force");
            }
        }
    }
}

/// A panic while compiling leaves the state as it was before: it is replaced only at the end.
fn lock(follower: &Mutex<Follower>) -> std::sync::MutexGuard<'_, Follower> {
    follower.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far behind a clock that is set forward may be noticed.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

async fn sleep_until(seconds: Option<i64>) {
    let Some(seconds) = seconds else { return std::future::pending().await };
    // Looked at again and again: clocks are set.
    loop {
        let left =
            jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX) - jiff::Timestamp::now();
        let Ok(left) = Duration::try_from(left) else { return };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_INTERVAL)).await;
    }
}

fn tell(health: &Health) {
    match health {
        Health::Well => tracing::info!("the configuration is in force as it is written again"),
        Health::Degraded(why) => tracing::warn!("the configuration is degraded: {why}"),
        Health::Failing(why) => tracing::error!("the configuration is not ready: {why}"),
    }
}
