//! The scenarios: which cases are measured side by side, and what their figures are held against.

use anyhow::Result;
use clap::ValueEnum;

use crate::load::{Protocol, Shape};
use crate::measure::{self, Case, Sample, Timing};
use crate::peer::{PairSpec, Peer};
use crate::report::{self, Figure, Table};
use crate::world::World;
use crate::{handshake, idle};

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Sidecar pair over mutual TLS, HTTP/1.1 on every hop, 32 requests in flight.
    PairH1,
    /// The same over HTTP/2: 8 connections of 4 streams.
    PairH2,
    /// One request at a time through the HTTP/1.1 pair: latency in a sidecar's normal state.
    LowLoad,
    /// Writ's records on against off.
    Telemetry,
    /// Writ with 10,000 AuthorizationPolicies against 10; requests carry a token.
    Policies,
    /// Writ refusing against Writ allowing, with 10 and with 10,000 such policies.
    Refusals,
    /// TLS handshakes of the server alone and mutual, by group.
    Handshake,
    /// Resident memory of an idle inbound proxy, and per idle mutual TLS connection.
    IdleMemory,
}

impl Scenario {
    const fn title(self) -> &'static str {
        match self {
            Self::PairH1 => "Sidecar pair, HTTP/1.1 over mutual TLS",
            Self::PairH2 => "Sidecar pair, HTTP/2 over mutual TLS",
            Self::LowLoad => "One request at a time through the pair, HTTP/1.1",
            Self::Telemetry => "Records on against off, HTTP/1.1 pair",
            Self::Policies => "10,000 AuthorizationPolicies against 10, HTTP/1.1 pair",
            Self::Refusals => "Refused requests against allowed ones, HTTP/1.1 pair",
            Self::Handshake => "Handshakes",
            Self::IdleMemory => "Memory of an idle inbound proxy",
        }
    }

    /// The figure whose ratios are the result.
    const fn figure(self) -> Figure {
        match self {
            Self::PairH1 | Self::PairH2 | Self::Telemetry | Self::Handshake | Self::IdleMemory => Figure::Cpu,
            Self::LowLoad => Figure::MedianLatency,
            Self::Policies | Self::Refusals => Figure::InboundCpu,
        }
    }

    fn cases(self, peers: &[Peer]) -> Vec<Case> {
        let plain = PairSpec { protocol: Protocol::Http1, records: true, policies: 1, tokens: false };
        let with = |policies| PairSpec { policies, tokens: true, ..plain };
        let full = Shape { protocol: Protocol::Http1, connections: 32, streams: 1 };
        let side_by_side = |pair: PairSpec, shape: Shape| {
            let case =
                |peer: &Peer| Case { label: peer.name().into(), peer: *peer, pair, shape, refused: false };
            peers.iter().map(case).collect()
        };
        let writ_only = |cases: Vec<(&str, PairSpec, bool)>| {
            let writ = peers.contains(&Peer::Writ);
            let cases = cases.into_iter().filter(|_| writ);
            let case = |(label, pair, refused): (&str, PairSpec, bool)| Case {
                label: label.into(),
                peer: Peer::Writ,
                pair,
                shape: full,
                refused,
            };
            cases.map(case).collect()
        };
        match self {
            Self::PairH1 => side_by_side(plain, full),
            Self::PairH2 => side_by_side(
                PairSpec { protocol: Protocol::Http2, ..plain },
                Shape { protocol: Protocol::Http2, connections: 8, streams: 4 },
            ),
            Self::LowLoad => side_by_side(plain, Shape { connections: 1, ..full }),
            Self::Telemetry => {
                let off = PairSpec { records: false, ..plain };
                writ_only(vec![("records off", off, false), ("records on", plain, false)])
            }
            Self::Policies => {
                writ_only(vec![("10 policies", with(10), false), ("10,000 policies", with(10_000), false)])
            }
            Self::Refusals => writ_only(vec![
                ("allowed, 10 policies", with(10), false),
                ("refused, 10 policies", with(10), true),
                ("allowed, 10,000 policies", with(10_000), false),
                ("refused, 10,000 policies", with(10_000), true),
            ]),
            Self::Handshake | Self::IdleMemory => Vec::new(),
        }
    }
}

/// What one run of the comparison does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Empty: all.
    pub scenarios: Vec<Scenario>,
    /// Empty: all that are installed.
    pub peers: Vec<Peer>,
    /// Of one repetition.
    pub timing: Timing,
    /// Of each case.
    pub repetitions: usize,
}

/// Measures everything and gives the report as Markdown.
pub async fn run(world: &World, plan: &Plan) -> Result<String> {
    let wanted = if plan.peers.is_empty() { Peer::value_variants() } else { &plan.peers };
    let (mut present, mut notes) = (Vec::new(), Vec::new());
    for peer in wanted {
        match world.program(*peer).and_then(|_| world.version(*peer)) {
            Ok(version) => {
                present.push(*peer);
                notes.push(format!("{}: {version}", peer.name()));
            }
            Err(absent) => notes.push(format!("{}: left out. {absent:#}", peer.name())),
        }
    }
    let mut report = report::head(plan, &notes);
    eprintln!("{report}");
    let scenarios = if plan.scenarios.is_empty() { Scenario::value_variants() } else { &plan.scenarios };
    for scenario in scenarios {
        eprintln!("{}", scenario.title());
        report += &match scenario {
            Scenario::Handshake => handshake::run(world, plan, &present, scenario.title()).await?,
            Scenario::IdleMemory => idle::run(world, &present, scenario.title()).await?,
            _ => side_by_side(world, plan, *scenario, &present).await?,
        };
    }
    Ok(report)
}

/// Repetition by repetition, case by case. A case that fails is reported in its row and measured no more.
async fn side_by_side(world: &World, plan: &Plan, scenario: Scenario, peers: &[Peer]) -> Result<String> {
    let cases = scenario.cases(peers);
    let mut results: Vec<Result<Vec<Sample>>> = cases.iter().map(|_| Ok(Vec::new())).collect();
    for repetition in 1..=plan.repetitions {
        for (case, result) in cases.iter().zip(&mut results) {
            let Ok(samples) = result else { continue };
            match measure::run(world, case, plan.timing).await {
                Ok(sample) => {
                    eprintln!(
                        "  {repetition}/{} {}: {}",
                        plan.repetitions,
                        case.label,
                        report::line(&sample)
                    );
                    samples.push(sample);
                }
                Err(error) => {
                    eprintln!("  {repetition}/{} {}: {error:#}", plan.repetitions, case.label);
                    *result = Err(error);
                }
            }
        }
    }
    let rows = cases.into_iter().map(|case| case.label).zip(results).collect();
    Ok(report::table(&Table { title: scenario.title(), figure: scenario.figure(), rows }))
}
