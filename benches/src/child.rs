//! Processes of the comparison: started on a chosen core, their cost read from `/proc`, gone when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which core does what.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// Load generator and applications.
    pub load: usize,
    /// The proxies.
    pub proxies: usize,
}

impl Cores {
    /// The first two cores that this process may use; pins the calling thread, and so all threads it starts from now
    /// on, to the first.
    pub fn claim() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("read the allowed cores")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let (Some(load), Some(proxies)) = (usable.next(), usable.next()) else {
            bail!("the comparison needs two cores: one for the proxies, one for the load");
        };
        pin_this_thread(load)?;
        Ok(Self { load, proxies })
    }
}

fn pin_this_thread(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("pin to core {cpu}"))
}

/// A running process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` on the proxies' core, standard output and error going to `log`.
    pub fn start(name: &str, command: &mut Command, cores: Cores, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A child inherits the affinity of the thread that starts it, and so do all threads it makes.
        pin_this_thread(cores.proxies)?;
        let started = command.spawn();
        pin_this_thread(cores.load)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let process = started.with_context(|| format!("start {name} ({program})"))?;
        Ok(Self { name: name.to_owned(), process, log: log.to_owned() })
    }

    /// An error with the end of its log when the process is no longer running.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("{} ended ({status}); its log ends:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// The last lines that the process wrote.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// CPU time of all its threads so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.process.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: read {path}", self.name))?;
        let ticks = cpu_ticks(&text).with_context(|| format!("{path} is not as expected: {text}"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: read {path}", self.name))?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let kib: u64 = kib.with_context(|| format!("{path} has no VmRSS"))?;
        Ok(kib * 1024)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// utime + stime of a `/proc/PID/stat` line. The second field may hold spaces and parentheses: count after the last.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Lets this process and its children hold `wanted` open files, as far as the hard limit allows.
pub fn raise_open_files(wanted: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let reachable = limit.maximum.unwrap_or(u64::MAX);
    ensure!(reachable >= wanted, "needs {wanted} open files, the hard limit is {reachable} (ulimit -Hn)");
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
        .context("raise the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_after_a_name_with_spaces() {
        let line = "12 (a) b (c) S 1 12 12 0 -1 4194304 99 0 0 0 250 125 7 9 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(line), Some(375));
        assert_eq!(cpu_ticks("12 (a) S 1"), None);
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let log = std::env::temp_dir().join(format!("writ-bench-child-{}.log", std::process::id()));
        let cores = Cores::claim();
        let Ok(cores) = cores else { return };
        let mut child = Child::start("sleep", Command::new("sleep").arg("60"), cores, &log).unwrap();
        child.ensure_running().unwrap();
        assert!(child.resident_bytes().unwrap() > 0);
        let pid = child.process.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn a_child_that_ended_shows_its_log() {
        let log = std::env::temp_dir().join(format!("writ-bench-ended-{}.log", std::process::id()));
        let Ok(cores) = Cores::claim() else { return };
        let mut command = Command::new("sh");
        let mut child = Child::start("sh", command.args(["-c", "echo why; exit 3"]), cores, &log).unwrap();
        child.process.wait().unwrap();
        let error = child.ensure_running().unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        std::fs::remove_file(log).unwrap();
    }
}
