//! A scrape of the keys of token issuers: how many, how old, and how their fetches went.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use crate::jwks::{Failure, Status};

pub(super) fn encode(sets: &[Status], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut keys =
        encoder.encode_descriptor("writ_jwks_keys", "Keys of an issuer in use", None, MetricType::Gauge)?;
    for set in sets {
        let count = i64::try_from(set.keys).unwrap_or(i64::MAX);
        keys.encode_family(&[("source", set.source.as_str())])?.encode_gauge(&count)?;
    }
    let mut fetched = encoder.encode_descriptor(
        "writ_jwks_fetched_timestamp",
        "When the keys of an issuer were last fetched",
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    for (set, time) in sets.iter().filter_map(|set| Some((set, set.fetched?))) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = i64::try_from(since).unwrap_or(i64::MAX);
        fetched.encode_family(&[("source", set.source.as_str())])?.encode_gauge(&seconds)?;
    }
    let mut fetches = encoder.encode_descriptor(
        "writ_jwks_fetches",
        "Fetches of the keys of an issuer, by how they went",
        None,
        MetricType::Counter,
    )?;
    for set in sets {
        let failed = Failure::ALL.iter().map(|failure| failure.as_str()).zip(set.failures);
        for (outcome, count) in std::iter::once(("ok", set.fetches)).chain(failed) {
            fetches
                .encode_family(&[("source", set.source.as_str()), ("outcome", outcome)])?
                .encode_counter(&count, None::<&Exemplar<NoLabelSet, u64>>)?;
        }
    }
    Ok(())
}
