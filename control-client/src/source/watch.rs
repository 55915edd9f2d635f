//! Notices that a directory changed, and waits until it has settled.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::dir::{self, Stamps};

/// Looked at this often even if the kernel says nothing: network file systems don't.
const POLL: Duration = Duration::from_secs(5);
/// Nothing may have moved for this long before a change is read.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never rests is read anyway.
const MAX_QUIET_WAITS: u32 = 20;

/// Follows a directory or file.
pub(crate) struct Watch {
    root: PathBuf,
    moved: Arc<Notify>,
    /// `None`: polling only.
    _watcher: Option<RecommendedWatcher>,
    /// As last seen.
    seen: Option<Stamps>,
}

impl Watch {
    pub(crate) fn new(root: &Path) -> Self {
        let moved = Arc::new(Notify::new());
        let watcher = watcher(root, moved.clone());
        if let Err(error) = &watcher {
            tracing::warn!(path = %root.display(), %error, every = ?POLL, "can't watch the configuration; polling it instead");
        }
        Self { root: root.to_owned(), moved, _watcher: watcher.ok(), seen: dir::stamps(root).ok() }
    }

    /// Returns when something may have changed and then nothing moved for a while.
    pub(crate) async fn changed(&mut self) {
        loop {
            let told = tokio::time::timeout(POLL, self.moved.notified()).await.is_ok();
            let now = stamps(&self.root).await;
            // Two writes within one tick of the clock can leave the same stamp, so being told is enough.
            if told || now != self.seen {
                self.seen = self.settle(now).await;
                return;
            }
        }
    }

    async fn settle(&self, mut last: Option<Stamps>) -> Option<Stamps> {
        for _ in 0..MAX_QUIET_WAITS {
            tokio::time::sleep(QUIET).await;
            let now = stamps(&self.root).await;
            if now == last {
                break;
            }
            last = now;
        }
        last
    }
}

async fn stamps(root: &Path) -> Option<Stamps> {
    let root = root.to_owned();
    tokio::task::spawn_blocking(move || dir::stamps(&root).ok()).await.ok().flatten()
}

fn watcher(root: &Path, moved: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| !is_reading(event.kind)) {
            moved.notify_one();
        }
    })?;
    if root.is_file() {
        // Editors replace files, so the directory is watched. `a.yaml` alone lies in the current one.
        let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    } else {
        watcher.watch(root, RecursiveMode::Recursive)?;
    }
    Ok(watcher)
}

/// Our own reading is told as well.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
