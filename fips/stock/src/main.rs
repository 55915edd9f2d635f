//! What handshakes and bulk data cost under each provider, in CPU time of this process. Fails where ours costs over 10 %
//! more than the stock one: medians of rounds that take turns, so that a busy machine disturbs both alike.

use std::process::ExitCode;
use std::time::Duration;

use fips::ca::KeyType;
use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use stock::{Ends, only, own, send, stock};

const ROUNDS: usize = 15;
const HANDSHAKES: u32 = 60;
const LIMIT: f64 = 1.10;

fn main() -> ExitCode {
    let groups = [
        NamedGroup::X25519MLKEM768,
        NamedGroup::secp256r1MLKEM768,
        NamedGroup::X25519,
        NamedGroup::secp256r1,
        NamedGroup::secp384r1,
    ];
    let mut within = true;
    println!("{:<44} {:>10} {:>10} {:>7}", "CPU, both sides", "own", "stock", "ratio");
    for group in groups {
        let ends = |provider: &CryptoProvider| {
            let provider = only(provider, provider.cipher_suites[0], &[group]);
            Ends::new(&provider, &provider, KeyType::P256)
        };
        let (ours, theirs) = (ends(&own()), ends(&stock()));
        let row = compare(
            || (0..HANDSHAKES).for_each(|_| drop(ours.shake().unwrap())),
            || (0..HANDSHAKES).for_each(|_| drop(theirs.shake().unwrap())),
        );
        within &= row.print(&format!("mutual handshake, TLS 1.3, {group:?}, us"), HANDSHAKES);
    }
    for (suite, version) in [(0, "TLS 1.3"), (2, "TLS 1.2")] {
        for size in [1024, 16 * 1024] {
            let count = (8 << 20) / size as u32;
            let pair = |provider: &CryptoProvider| {
                let provider = only(provider, provider.cipher_suites[suite], &[NamedGroup::secp256r1]);
                Ends::new(&provider, &provider, KeyType::P256).shake().unwrap()
            };
            let data = vec![7; size];
            let run = |provider: &CryptoProvider| {
                let (mut client, mut server) = pair(provider);
                let (data, mut into) = (data.clone(), vec![0; size]);
                move || (0..count).for_each(|_| send(&mut client, &mut server, &data, &mut into))
            };
            let row = compare(run(&own()), run(&stock()));
            within &= row.print(&format!("{size} bytes sealed and opened, {version}, us"), count);
        }
    }
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Row {
    own: Duration,
    stock: Duration,
}

impl Row {
    fn print(&self, what: &str, of: u32) -> bool {
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(of);
        let ratio = self.own.as_secs_f64() / self.stock.as_secs_f64();
        println!("{what:<44} {:>10.2} {:>10.2} {ratio:>7.3}", micros(self.own), micros(self.stock));
        ratio <= LIMIT
    }
}

fn compare(mut own: impl FnMut(), mut stock: impl FnMut()) -> Row {
    own();
    stock();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(cpu(&mut own));
        theirs.push(cpu(&mut stock));
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    Row { own: ours[ROUNDS / 2], stock: theirs[ROUNDS / 2] }
}

/// CPU time of this thread, which does all the work.
fn cpu(run: &mut impl FnMut()) -> Duration {
    let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    run();
    let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = |at: rustix::time::Timespec| at.tv_sec * 1_000_000_000 + at.tv_nsec;
    Duration::from_nanos(u64::try_from(nanos(after) - nanos(before)).unwrap_or_default())
}
