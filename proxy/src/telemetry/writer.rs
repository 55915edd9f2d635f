//! The one thread that writes records: to standard output, to a file that may be rotated, or to a channel.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::options::Sink;
use super::queue::{Batch, Next, Queue};

/// What the writer lost, for metrics.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Records that could not be written.
    pub(super) records: AtomicU64,
}

/// Opens the sink and starts the thread. `None` where records go nowhere.
pub(super) fn start(
    sink: &Sink,
    queue: &Arc<Queue>,
    losses: &Arc<Losses>,
) -> io::Result<Option<JoinHandle<()>>> {
    let output = match sink {
        Sink::Off => return Ok(None),
        Sink::Stdout => Output::Stdout,
        Sink::File(path) => Output::File(Log::open(path)?),
        Sink::Channel(lines) => Output::Channel(lines.clone()),
    };
    let mut writer = Writer {
        output,
        queue: Arc::clone(queue),
        losses: Arc::clone(losses),
        torn: false,
        complained: None,
    };
    thread::Builder::new().name("writ-records".into()).spawn(move || writer.run()).map(Some)
}

struct Writer {
    output: Output,
    queue: Arc<Queue>,
    losses: Arc<Losses>,
    /// The last write failed midway: the next begins on a line of its own.
    torn: bool,
    complained: Option<Instant>,
}

enum Output {
    Stdout,
    File(Log),
    Channel(mpsc::Sender<String>),
}

impl Writer {
    fn run(&mut self) {
        loop {
            match self.queue.next() {
                Next::Write(mut batch) => {
                    batch.complete();
                    self.write(&batch);
                    self.queue.written(batch.bytes);
                }
                Next::Reopen => self.reopen(),
                Next::Close => return,
            }
        }
    }

    fn write(&mut self, batch: &Batch) {
        let result = match &mut self.output {
            Output::Stdout => whole(&mut io::stdout().lock(), &batch.bytes, self.torn),
            Output::File(log) => {
                log.follow();
                whole(&mut log.file, &batch.bytes, self.torn)
            }
            Output::Channel(lines) => {
                let lost = send(lines, &batch.bytes);
                self.losses.records.fetch_add(lost, Ordering::Relaxed);
                return;
            }
        };
        self.torn = result.is_err();
        if let Err(error) = result {
            self.losses.records.fetch_add(batch.records, Ordering::Relaxed);
            self.complain(&error);
        }
    }

    fn reopen(&mut self) {
        if let Output::File(log) = &mut self.output
            && let Err(error) = log.reopen()
        {
            self.complain(&error);
        }
    }

    /// Says what is wrong, at most once in a while: a full disk fails every batch.
    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_some_and(|at| at.elapsed() < COMPLAINT_INTERVAL) {
            return;
        }
        self.complained = Some(Instant::now());
        let lost = self.losses.records.load(Ordering::Relaxed);
        tracing::error!(%error, lost, "records can't be written; traffic goes on without them");
    }
}

/// Writes all of it. After a failure midway the half line is ended first, so that it spoils no other.
fn whole(output: &mut impl Write, bytes: &[u8], torn: bool) -> io::Result<()> {
    if torn {
        output.write_all(b"\n")?;
    }
    output.write_all(bytes)?;
    output.flush()
}

/// Sends line by line; returns how many found no place.
fn send(lines: &mpsc::Sender<String>, bytes: &[u8]) -> u64 {
    let mut lost = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
        lost += u64::from(lines.try_send(text).is_err());
    }
    lost
}

/// A log file that someone may rename away.
struct Log {
    path: PathBuf,
    file: File,
    /// Device and inode of `file`.
    inode: (u64, u64),
    looked: Instant,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let (file, inode) = append(path)?;
        Ok(Self { path: path.to_owned(), file, inode, looked: Instant::now() })
    }

    /// Follows a rotation. While there is no way to the new file, the old one is written on.
    fn follow(&mut self) {
        if self.looked.elapsed() < ROTATION_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let moved = match std::fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.inode,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if moved && let Err(error) = self.reopen() {
            tracing::warn!(%error, "the record file was moved; writing on to the old one");
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.inode) = append(&self.path)?;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<(File, (u64, u64))> {
    let file =
        OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(|error| {
            io::Error::new(error.kind(), format!("record file {}: {error}", path.display()))
        })?;
    let found = file.metadata()?;
    Ok((file, (found.dev(), found.ino())))
}

/// Between two looks whether the file is still where it was.
const ROTATION_INTERVAL: Duration = Duration::from_secs(1);
/// Between two complaints about failed writes.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then fails.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.bytes.extend_from_slice(&bytes[..taken]);
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let mut disk = Disk { bytes: Vec::new(), room: 5 };
        assert!(whole(&mut disk, b"{\"a\":1}\n", false).is_err());
        disk.room = 100;
        whole(&mut disk, b"{\"b\":2}\n", true).unwrap();
        assert_eq!(disk.bytes, b"{\"a\":\n{\"b\":2}\n");
    }

    #[test]
    fn a_channel_gets_lines_and_counts_those_without_place() {
        let (sender, mut receiver) = mpsc::channel(2);
        assert_eq!(send(&sender, b"a\nb\nc\n"), 1);
        assert_eq!(receiver.try_recv().as_deref(), Ok("a"));
        assert_eq!(receiver.try_recv().as_deref(), Ok("b"));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_renamed_file_is_followed() {
        let directory = std::env::temp_dir().join(format!("writ-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (path, rotated) = (directory.join("records"), directory.join("records.1"));
        let mut log = Log::open(&path).unwrap();
        log.file.write_all(b"old\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        log.looked -= ROTATION_INTERVAL;
        log.follow();
        log.file.write_all(b"new\n").unwrap();
        assert_eq!(std::fs::read(&rotated).unwrap(), b"old\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = Log::open(Path::new("/nowhere/records")).err().unwrap().to_string();
        assert!(error.contains("/nowhere/records"), "{error}");
    }
}
