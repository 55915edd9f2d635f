//! A directory, or one file, of YAML and JSON.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
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
/// Directories that are looked into, however often links lead to the same.
const MAX_DIRECTORIES: usize = 10_000;
/// Directories within directories.
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
    unread: Option<Unread>,
}

/// Why something that is there is not read. It is reported, since nobody can say what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unread {
    /// A symbolic link to nothing, or to what may not be looked at.
    Dangling,
    /// A directory that can't be listed.
    Unlisted,
    /// A directory below [`MAX_DEPTH`] others.
    TooDeep,
    /// The first beyond [`MAX_FILES`].
    TooMany,
    /// Beyond [`MAX_DIRECTORIES`].
    TooManyDirectories,
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
        let mut walk = Walk { above: vec![inode(&metadata)], directories: 0 };
        for entry in fs::read_dir(root)? {
            add(&entry?.path(), &mut walk, &mut found);
        }
    }
    Ok(found)
}

/// Where a walk is.
struct Walk {
    /// The directories that it is in.
    above: Vec<(u64, u64)>,
    /// Those that it was in: links can make many of a few.
    directories: usize,
}

/// Adds what is at `path`.
fn add(path: &Path, walk: &mut Walk, found: &mut Stamps) {
    // Hidden files are editors' business, and `..data` is where Kubernetes keeps what its links point to.
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    if hidden || found.len() > MAX_FILES {
        return;
    }
    let Ok(metadata) = fs::metadata(path) else {
        // What is gone again was there only while it was walked. What has no extension may have been a directory.
        let may_matter = is_configuration(path) || path.extension().is_none();
        if let (true, Ok(link)) = (may_matter, fs::symlink_metadata(path)) {
            found.insert(path.to_owned(), Stamp { unread: Some(Unread::Dangling), ..Stamp::of(&link) });
        }
        return;
    };
    if metadata.is_dir() {
        if walk.above.contains(&inode(&metadata)) {
            // A link back up: all that is there has been seen.
            return;
        }
        let unread = |why| Stamp { unread: Some(why), ..Stamp::of(&metadata) };
        walk.directories += 1;
        match fs::read_dir(path) {
            _ if walk.directories > MAX_DIRECTORIES => {
                // Once: there may be no end of them.
                if walk.directories == MAX_DIRECTORIES + 1 {
                    found.insert(path.to_owned(), unread(Unread::TooManyDirectories));
                }
            }
            _ if walk.above.len() >= MAX_DEPTH => {
                found.insert(path.to_owned(), unread(Unread::TooDeep));
            }
            Ok(entries) => {
                walk.above.push(inode(&metadata));
                for entry in entries {
                    match entry {
                        Ok(entry) => add(&entry.path(), walk, found),
                        Err(_) => drop(found.insert(path.to_owned(), unread(Unread::Unlisted))),
                    }
                }
                walk.above.pop();
            }
            Err(_) if !path.exists() => {}
            Err(_) => drop(found.insert(path.to_owned(), unread(Unread::Unlisted))),
        }
    } else if metadata.is_file() && is_configuration(path) {
        let unread = (found.len() == MAX_FILES).then_some(Unread::TooMany);
        found.insert(path.to_owned(), Stamp { unread, ..Stamp::of(&metadata) });
    }
}

fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn is_configuration(path: &Path) -> bool {
    let is =
        |extension: &OsStr| ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known));
    path.extension().is_some_and(is)
}

fn read_text(path: &Path, stamp: &Stamp) -> Result<String, String> {
    match stamp.unread {
        None => {}
        Some(Unread::Dangling) => {
            return Err("a symbolic link to what is not there, or can't be looked at".into());
        }
        Some(Unread::Unlisted) => {
            return Err("a directory that can't be listed; check its permissions".into());
        }
        Some(Unread::TooDeep) => return Err(format!("below {MAX_DEPTH} directories; it is not looked into")),
        Some(Unread::TooManyDirectories) => {
            return Err(format!("more than {MAX_DIRECTORIES} directories; from here on none is looked into"));
        }
        Some(Unread::TooMany) => {
            return Err(format!("more than {MAX_FILES} files; from here on none is read"));
        }
    }
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
            unread: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own, with what `fill` puts there; what is found there, by name, and why it is not read.
    fn found(name: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> Vec<(String, Option<Unread>)> {
        let root = std::env::temp_dir().join(format!("writ-dir-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fill(&root).unwrap();
        let found = stamps(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let relative = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
        found.iter().map(|(path, stamp)| (relative(path), stamp.unread)).collect()
    }

    #[test]
    fn what_is_there_and_not_read_is_not_passed_over() {
        let found = found("unread", |root| {
            fs::write(root.join("Policy.YAML"), "")?;
            fs::write(root.join("notes.txt"), "")?;
            symlink("nowhere", root.join("link.yaml"))?;
            symlink("nowhere", root.join("link.txt"))?;
            symlink("nowhere", root.join("team"))?;
            let deep = (0..MAX_DEPTH).fold(root.to_owned(), |path, _| path.join("d"));
            fs::create_dir_all(&deep)?;
            fs::write(deep.join("a.yaml"), "")
        });
        let deep = vec!["d"; MAX_DEPTH].join("/");
        let expected = [
            ("Policy.YAML", None),
            (&deep, Some(Unread::TooDeep)),
            ("link.yaml", Some(Unread::Dangling)),
            ("team", Some(Unread::Dangling)),
        ];
        assert_eq!(found, expected.map(|(name, unread)| (name.to_owned(), unread)));
    }

    #[test]
    fn links_that_make_many_directories_of_a_few_come_to_an_end() {
        let found = found("clique", |root| {
            for from in 0..12 {
                fs::create_dir_all(root.join(from.to_string()))?;
                for to in (0..12).filter(|to| *to != from) {
                    symlink(root.join(to.to_string()), root.join(format!("{from}/{to}")))?;
                }
            }
            Ok(())
        });
        assert_eq!(found.iter().filter(|(_, why)| *why == Some(Unread::TooManyDirectories)).count(), 1);
    }

    #[test]
    fn a_link_back_up_is_no_other_directory() {
        let found = found("circle", |root| {
            fs::create_dir(root.join("team"))?;
            fs::write(root.join("team/a.yaml"), "")?;
            symlink("..", root.join("team/up"))?;
            symlink("team", root.join("same"))
        });
        let expected = ["same/a.yaml", "team/a.yaml"];
        assert_eq!(found, expected.map(|name| (name.to_owned(), None)));
    }
}
