//! What telemetry is told at start: who the proxy is, where records go, and which share of them.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Side, json};

/// What telemetry is told at start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who this proxy is, as every record says.
    pub proxy: ProxyFacts,
    /// Where records go.
    pub sink: Sink,
    /// Which share of them.
    pub sample: Sample,
    /// Age at which one that is still open says so, and how often it says so again.
    pub progress: Duration,
}

impl Options {
    /// Every record of `proxy` to `sink`.
    pub fn new(proxy: ProxyFacts, sink: Sink) -> Self {
        Self { proxy, sink, sample: Sample::ALL, progress: DEFAULT_PROGRESS }
    }
}

/// Default of [`Options::progress`].
pub const DEFAULT_PROGRESS: Duration = Duration::from_secs(60);

/// Who this proxy is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyFacts {
    /// `sidecar`, `gateway` or `standalone`.
    pub role: String,
    /// `namespace/name`.
    pub workload: String,
    /// Its own identity, `spiffe://..`.
    pub identity: Option<String>,
    /// Version of the program.
    pub version: String,
}

/// [`ProxyFacts`] as JSON members, one text a side: rendered once per process, copied into every record.
#[derive(Debug, Clone)]
pub(super) struct ProxyFragments([Arc<str>; 3]);

impl ProxyFragments {
    pub(super) fn new(facts: &ProxyFacts) -> Self {
        Self([Side::Inbound, Side::Outbound, Side::Gateway].map(|side| Self::render(facts, side)))
    }

    pub(super) fn of(&self, side: Side) -> &str {
        &self.0[side as usize]
    }

    fn render(facts: &ProxyFacts, side: Side) -> Arc<str> {
        let mut out = Vec::with_capacity(256);
        json::raw(&mut out, r#","proxy":{"role":"#);
        json::string(&mut out, &facts.role);
        json::raw(&mut out, r#","side":"#);
        json::string(&mut out, side.as_str());
        json::raw(&mut out, r#","workload":"#);
        json::string(&mut out, &facts.workload);
        if let Some(identity) = &facts.identity {
            json::raw(&mut out, r#","identity":"#);
            json::string(&mut out, identity);
        }
        json::raw(&mut out, r#","version":"#);
        json::string(&mut out, &facts.version);
        json::raw(&mut out, "}");
        json::into_text(out).into()
    }
}

/// Where records go (`--record`).
#[derive(Debug, Clone, Default)]
pub enum Sink {
    /// Nowhere; metrics are kept all the same.
    Off,
    /// Standard output, a line a record.
    #[default]
    Stdout,
    /// Appended to a file, which may be renamed away for rotation.
    File(PathBuf),
    /// To this process itself, a line a message. A full channel drops the line and counts it.
    Channel(mpsc::Sender<String>),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            "otlp" => Err("records over OTLP are not supported yet; use stdout or file:PATH".into()),
            _ => match text.strip_prefix("file:") {
                Some("") => Err("file: needs a path, as in file:/var/log/writ/records.json".into()),
                Some(path) => Ok(Self::File(path.into())),
                None => Err(format!("unknown record sink {text:?}: expected off, stdout or file:PATH")),
            },
        }
    }
}

/// Which share of the records is written (`--record-sample`). Refusals always are, and metrics count them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Out of 2^32.
    threshold: u64,
}

impl Sample {
    /// Every record.
    pub const ALL: Self = Self { threshold: 1 << 32 };

    /// Whether the record with this id is written. The low bits of an id are random.
    pub(super) fn keeps(self, id: u128) -> bool {
        u64::from(id as u32) < self.threshold
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for Sample {
    type Err = String;

    /// `0.01` or `1%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(percent) => (percent, 100.0),
            None => (text, 1.0),
        };
        match number.parse::<f64>() {
            Ok(share) if (0.0..=unit).contains(&share) => {
                Ok(Self { threshold: (share / unit * (1u64 << 32) as f64) as u64 })
            }
            _ => Err(format!("not a share: {text:?}; expected 0 to 1, or 0% to 100%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_are_read_from_flags() {
        assert!(matches!("off".parse(), Ok(Sink::Off)));
        assert!(matches!("stdout".parse(), Ok(Sink::Stdout)));
        assert!(matches!("file:/a b".parse(), Ok(Sink::File(path)) if path.as_os_str() == "/a b"));
        for (text, part) in
            [("otlp", "not supported yet"), ("file:", "needs a path"), ("syslog", "unknown record sink")]
        {
            assert!(text.parse::<Sink>().unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn samples_are_shares() {
        assert_eq!("1".parse(), Ok(Sample::ALL));
        assert_eq!("100%".parse(), Ok(Sample::ALL));
        assert_eq!("50%".parse::<Sample>(), "0.5".parse());
        let none: Sample = "0".parse().unwrap();
        assert!(!none.keeps(0) && Sample::ALL.keeps(u128::MAX));
        for text in ["", "%", "-1", "1.1", "101%", "NaN", "inf"] {
            assert!(text.parse::<Sample>().is_err(), "{text}");
        }
    }
}
