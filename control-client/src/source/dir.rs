//! A directory, or one file, of YAML and JSON.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::keep::Files;
use crate::resource::{self, ParsedFile};

/// Larger files are reported and not read.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// More files than this are not looked at; the rest is reported.
const MAX_FILES: usize = 100_000;
/// Directories within directories; also what ends a circle of symbolic links.
const MAX_DEPTH: usize = 16;

/// A directory or file, with what was parsed of it before.
#[derive(Debug)]
pub(crate) struct Dir {
    root: PathBuf,
    /// By the digest of a file's name and bytes, so that only what changed is parsed again.
    parsed: HashMap<[u8; 32], Arc<ParsedFile>>,
}

/// What shows from outside that a file changed, by path.
pub(crate) type Stamps = BTreeMap<PathBuf, Stamp>;

/// What shows from outside that a file changed. A swapped symbolic link shows as another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Dir {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), parsed: HashMap::new() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Reads everything. An error means that there is nothing to read at all.
    ///
    /// A directory whose content is swapped while it is read would give half of each: so it is read again until
    /// nothing moved meanwhile.
    pub(crate) fn read(&mut self) -> io::Result<Files> {
        const TRIES: usize = 5;
        let mut before = stamps(&self.root)?;
        for _ in 1..TRIES {
            let files = self.read_files(&before);
            let after = stamps(&self.root)?;
            if before == after {
                return Ok(files);
            }
            before = after;
        }
        Ok(self.read_files(&before))
    }

    fn read_files(&mut self, stamps: &Stamps) -> Files {
        let mut files = Files::new();
        let mut parsed = HashMap::new();
        for (path, stamp) in stamps {
            let name: Arc<str> = path.to_string_lossy().into();
            let file = match read_text(path, stamp) {
                Ok(text) => {
                    let digest = fips::sha256(format!("{name}\0{text}").as_bytes());
                    let known = self.parsed.get(&digest).cloned();
                    let file = known.unwrap_or_else(|| Arc::new(resource::read_file(&name, &text)));
                    parsed.insert(digest, file.clone());
                    file
                }
                Err(message) => Arc::new(ParsedFile {
                    broken: vec![resource::file_diagnostic(&name, 1, message)],
                    ..ParsedFile::default()
                }),
            };
            files.insert(name, file);
        }
        self.parsed = parsed;
        files
    }
}

/// The files of a directory, or the file itself.
pub(crate) fn stamps(root: &Path) -> io::Result<Stamps> {
    let mut found = Stamps::new();
    let metadata = fs::metadata(root)?;
    if metadata.is_file() {
        found.insert(root.to_owned(), Stamp::of(&metadata));
    } else {
        // The root must be readable; what lies deeper may come and go while it is walked.
        for entry in fs::read_dir(root)? {
            add(&entry?.path(), 1, &mut found);
        }
    }
    Ok(found)
}

fn add(path: &Path, depth: usize, found: &mut Stamps) {
    // Hidden files are editors' business, and `..data` is where Kubernetes keeps what its links point to.
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    if hidden || found.len() >= MAX_FILES {
        return;
    }
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.is_dir() {
        let entries = if depth < MAX_DEPTH { fs::read_dir(path).ok() } else { None };
        for entry in entries.into_iter().flatten().flatten() {
            add(&entry.path(), depth + 1, found);
        }
    } else if metadata.is_file() && is_configuration(path) {
        found.insert(path.to_owned(), Stamp::of(&metadata));
    }
}

fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn read_text(path: &Path, stamp: &Stamp) -> Result<String, String> {
    if stamp.length > MAX_FILE_BYTES {
        return Err(format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20));
    }
    let bytes = fs::read(path).map_err(|error| format!("can't be read: {error}"))?;
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
