//! One repetition of one case: a fresh pair, load upon it, and what that cost.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::load::{Load, Shape};
use crate::peer::{ALLOWED, OTHER_PATH, Pair, PairSpec, Peer};
use crate::world::World;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its row in the table.
    pub label: String,
    /// Whose pair.
    pub peer: Peer,
    /// Its set-up.
    pub pair: PairSpec,
    /// The load upon it.
    pub shape: Shape,
    /// Requests that the policy refuses, instead of those that it allows.
    pub refused: bool,
}

/// For how long.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Load before anything counts.
    pub warm_up: Duration,
    /// Load that counts.
    pub measured: Duration,
}

/// The figures of one repetition.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// CPU time per request, both proxies, microseconds.
    pub cpu_us: f64,
    /// The inbound proxy's part of it.
    pub inbound_cpu_us: f64,
    /// Requests per second.
    pub rate: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency, microseconds.
    pub p99_us: f64,
    /// Answers other than those expected, and broken connections.
    pub errors: u64,
    /// Share of requests that version 2 got.
    pub v2_share: f64,
    /// Share of requests that reached the application over HTTP/2.
    pub http2_share: f64,
    /// Records per served request and proxy; `None` where they are not counted. The few refusals of the check at the
    /// start have records too, so that a whole file shows slightly more than 1.
    pub records: Option<f64>,
}

/// Runs `case` once.
pub async fn run(world: &World, case: &Case, timing: Timing) -> Result<Sample> {
    let dir = world.run_directory(case.peer)?;
    let sample = run_in(world, case, timing, &dir).await;
    world.discard(&dir);
    sample
}

async fn run_in(world: &World, case: &Case, timing: Timing, dir: &Path) -> Result<Sample> {
    let served_before = world.v1.requests() + world.v2.requests();
    let mut pair = Pair::start(case.peer, world, case.pair, dir).await?;
    let (request, expected) = if case.refused { (OTHER_PATH, 403) } else { (ALLOWED, 200) };
    let request = case.pair.as_sent(request, world);
    let load = Load::start(pair.entry, request, expected, case.shape)?;
    tokio::time::sleep(timing.warm_up).await;

    load.record();
    let before = Reading::take(world, &pair, &load)?;
    tokio::time::sleep(timing.measured).await;
    let after = Reading::take(world, &pair, &load)?;

    pair.outbound.ensure_running()?;
    pair.inbound.ensure_running()?;
    let first_error = load.first_error();
    let errors = load.errors();
    let (latencies, completed) = load.stop()?;
    let mut sample = after.since(&before);
    if sample.rate == 0.0 {
        bail!("no request was answered: {}", first_error.unwrap_or_else(|| "all are still waiting".into()));
    }
    sample.p50_us = latencies.quantile_us(0.50);
    sample.p99_us = latencies.quantile_us(0.99);
    sample.errors = errors;
    let served = world.v1.requests() + world.v2.requests() - served_before;
    sample.records = records_per_request(&pair, if case.refused { completed } else { served }).await?;
    if let Some(error) = first_error {
        eprintln!("  {}: first of {errors} errors: {error}", case.label);
    }
    Ok(sample)
}

/// All counters at one moment.
struct Reading {
    at: Instant,
    outbound: Duration,
    inbound: Duration,
    completed: u64,
    v1: u64,
    v2: u64,
    http2: u64,
}

impl Reading {
    fn take(world: &World, pair: &Pair, load: &Load) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            outbound: pair.outbound.cpu_time()?,
            inbound: pair.inbound.cpu_time()?,
            completed: load.completed(),
            v1: world.v1.requests(),
            v2: world.v2.requests(),
            http2: world.v1.http2_requests() + world.v2.http2_requests(),
        })
    }

    fn since(&self, before: &Self) -> Sample {
        let completed = (self.completed - before.completed) as f64;
        let inbound = (self.inbound - before.inbound).as_secs_f64() * 1e6;
        let outbound = (self.outbound - before.outbound).as_secs_f64() * 1e6;
        let (v1, v2) = ((self.v1 - before.v1) as f64, (self.v2 - before.v2) as f64);
        Sample {
            cpu_us: (inbound + outbound) / completed,
            inbound_cpu_us: inbound / completed,
            rate: completed / (self.at - before.at).as_secs_f64(),
            v2_share: share(v2, v1 + v2),
            http2_share: share((self.http2 - before.http2) as f64, v1 + v2),
            ..Sample::default()
        }
    }
}

/// None of nothing: refused requests reach no application.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Lines in the record files over requests and proxies. Records are written behind the requests: waits a little for
/// the last of them.
async fn records_per_request(pair: &Pair, requests: u64) -> Result<Option<f64>> {
    if pair.records.is_empty() {
        return Ok(None);
    }
    ensure!(requests > 0, "no request to hold the records against");
    let expected = requests * pair.records.len() as u64;
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let mut lines = 0;
        for path in &pair.records {
            lines += count_lines(path).with_context(|| format!("read {}", path.display()))?;
        }
        if lines >= expected || Instant::now() > deadline {
            return Ok(Some(lines as f64 / expected as f64));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn count_lines(path: &Path) -> Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(lines),
            read => lines += chunk[..read].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
