//! How the keys of issuers stand: what `/jwks` and the `writ_jwks_*` metrics say.

use std::time::SystemTime;

use serde_json::{Value, json};

/// Why a set was not fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In a word.
    pub failure: Failure,
    /// For the operator.
    pub detail: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No address, no connection, or none that answers by HTTP.
    Unreachable,
    /// The server does not prove the name in the URL, or there are no roots to prove it by.
    Tls,
    /// Not whole in time.
    Timeout,
    /// Another HTTP status than 200.
    Status,
    /// A redirect that is not followed.
    Redirect,
    /// The answer ended before its end.
    BrokenOff,
    /// More bytes than are read.
    TooLarge,
    /// What came is not the issuer's configuration, or not a set with a key of use.
    Unusable,
}

impl Failure {
    /// All of them, so that metrics show zeros too.
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Tls,
        Self::Timeout,
        Self::Status,
        Self::Redirect,
        Self::BrokenOff,
        Self::TooLarge,
        Self::Unusable,
    ];

    /// The word in metrics and in `/jwks`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Redirect => "redirect",
            Self::BrokenOff => "broken-off",
            Self::TooLarge => "too-large",
            Self::Unusable => "unusable",
        }
    }

    /// A problem of this kind.
    pub(super) fn because(self, detail: impl ToString) -> Problem {
        Problem { failure: self, detail: detail.to_string() }
    }
}

impl Problem {
    /// The same, of what was asked there.
    pub(super) fn at(self, url: impl std::fmt::Display) -> Self {
        Self { detail: format!("{url}: {}", self.detail), ..self }
    }
}

/// One set.
#[derive(Debug, Clone)]
pub struct Status {
    /// Where it is from: the URL of the set, or the issuer whose configuration leads there.
    pub source: String,
    /// Keys in use.
    pub keys: usize,
    /// Keys of the set that can't verify tokens, and why.
    pub left_out: Vec<String>,
    /// When the set was last fetched; `None`: never.
    pub fetched: Option<SystemTime>,
    /// Fetches that brought one.
    pub fetches: u64,
    /// Those that did not, as [`Failure::ALL`] lists them.
    pub failures: [u64; Failure::ALL.len()],
    /// Why the last one did not, if it did not.
    pub problem: Option<Problem>,
}

impl Status {
    /// As `/jwks` shows it.
    pub(super) fn to_json(&self) -> Value {
        let mut shown = json!({
            "source": self.source,
            "keys": self.keys,
            "fetches": self.fetches,
            "failures": self.failures.iter().sum::<u64>(),
        });
        if let Some(fetched) = self.fetched.and_then(|time| jiff::Timestamp::try_from(time).ok()) {
            shown["fetched"] = fetched.to_string().into();
        }
        if !self.left_out.is_empty() {
            shown["left_out"] = self.left_out.clone().into();
        }
        if let Some(problem) = &self.problem {
            shown["problem"] = json!({"failure": problem.failure.as_str(), "detail": problem.detail});
        }
        shown
    }
}
