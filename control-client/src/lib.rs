//! Sources of configuration -> intent -> snapshot. Knows no data path.

mod compile;
mod digest;
mod follow;
mod health;
pub mod jwks;
mod keep;
mod lint;
mod pipeline;
mod report;
mod resource;
mod resources;
pub mod snapshot;
mod source;
pub mod status;
pub mod verdict;
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

pub use health::Health;
pub use resources::{Resources, Selection};
pub use status::{Report, Status};
pub use workload::Workload;

use keep::Files;
use pipeline::Pipeline;
use snapshot::Snapshot;
use source::dir::Dir;
use verdict::Diagnostic;

/// Where configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory, searched recursively for `*.yaml`, `*.yml` and `*.json`, or one such file. Watched.
    Dir(PathBuf),
}

/// How a source is followed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Any diagnostic refuses the whole update (`--config-strict`).
    pub strict: bool,
    /// What comes in to the workload is decided by this: what may select it fails closed for as long as its labels are not
    /// known. Otherwise it is left out.
    pub inbound: bool,
}

/// A configuration read once.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it means for the workload.
    pub snapshot: Snapshot,
    /// Everything wrong with it, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects there are, live ones (Pods, EndpointSlices) among them.
    pub objects: usize,
    /// Whether it is known what selects the workload: it has labels, or a Pod or WorkloadEntry of its name is here, or
    /// nothing that could be for it has a selector.
    pub workload_known: bool,
    /// How many objects of each kind were not read, as `Deployment.apps`: those of other groups.
    pub skipped: BTreeMap<String, usize>,
}

/// Why a source could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory or file can't be read at all.
    #[error("can't read configuration from {path}: {error}; check the path and its permissions")]
    Unreadable {
        /// As given.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// `strict`, and there are diagnostics.
    #[error("configuration refused (--config-strict){}; `writ check` lists everything", first(.0))]
    Strict(Vec<Diagnostic>),
}

fn first(diagnostics: &[Diagnostic]) -> String {
    diagnostics.first().map(|diagnostic| format!(", first for {diagnostic}")).unwrap_or_default()
}

/// Reads a directory or file once, and says also which rules do nothing.
pub fn load_once(dir: &Path, workload: &Workload) -> Loaded {
    match Dir::new(dir).read() {
        Ok(files) => {
            let mut loaded = load(&files, workload);
            loaded.diagnostics.extend(lint::warnings(&keep::update(&keep::Objects::new(), &files)));
            loaded.diagnostics.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            loaded
        }
        Err(error) => {
            let mut loaded = load(&Files::new(), workload);
            let message = format!("can't be read: {error}; check the path and its permissions");
            loaded.diagnostics.push(resource::file_diagnostic(&dir.display().to_string(), 1, message));
            loaded
        }
    }
}

/// Reads YAML from memory, as if it were one file.
pub fn load_str(yaml: &str, workload: &Workload) -> Loaded {
    let name: Arc<str> = Arc::from("<memory>");
    let file = resource::read_file(&name, yaml);
    load(&Files::from([(name, Arc::new(file))]), workload)
}

fn load(files: &Files, workload: &Workload) -> Loaded {
    Pipeline::first(workload.clone(), files, Options::default()).1
}

/// Follows a source: the receiver holds the first snapshot at return; the future runs until every receiver is gone.
///
/// The future needs a tokio runtime with time; it may be spawned anywhere. Compiles run on the blocking pool.
pub fn start(
    source: Source,
    workload: Workload,
    options: Options,
) -> Result<(watch::Receiver<Arc<Snapshot>>, Status, impl Future<Output = ()> + Send + 'static), StartError> {
    let Source::Dir(path) = source;
    let (receiver, future) = follow::start(path, workload, options)?;
    Ok((receiver, Status::default(), future))
}

#[cfg(test)]
mod tests;
