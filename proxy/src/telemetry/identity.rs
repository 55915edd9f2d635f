//! A scrape of the identity: how long it lasts, and how its renewal goes.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use crate::clock::seconds;
use crate::identity::Status;

pub(super) fn encode(status: &Status, now: SystemTime, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut expiry = encoder.encode_descriptor(
        "writ_identity_expiry",
        "Time until the own certificate, or the root that vouches for it, expires; negative: it has",
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    for (of, not_after) in [("leaf", status.leaf_not_after), ("root", status.root_not_after)] {
        expiry.encode_family(&[("of", of)])?.encode_gauge(&(not_after - seconds(now)))?;
    }
    encoder
        .encode_descriptor(
            "writ_identity_renewed_timestamp",
            "When the certificate in force was taken",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?
        .encode_gauge(&seconds(status.taken))?;
    for (name, help, count) in [
        ("writ_identity_rotations", "Certificates and roots taken since the first", status.rotations),
        (
            "writ_identity_failures",
            "How often a source of the identity had nothing that could be taken",
            status.failures,
        ),
    ] {
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter(&count, None::<&Exemplar<NoLabelSet, u64>>)?;
    }
    encoder
        .encode_descriptor(
            "writ_identity_problem",
            "1: what a source of the identity has now is not in force, and the old serves",
            None,
            MetricType::Gauge,
        )?
        .encode_gauge(&i64::from(status.problem.is_some()))?;
    let labels = [("id", status.id.as_str()), ("problem", status.problem.as_deref().unwrap_or_default())];
    // Its sample is `writ_identity_info`.
    encoder
        .encode_descriptor(
            "writ_identity",
            "Whose certificate it is, and what is wrong",
            None,
            MetricType::Info,
        )?
        .encode_info(&labels.as_slice())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use prometheus_client::collector::Collector;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct At(Status, SystemTime);

    impl Collector for At {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            super::encode(&self.0, self.1, &mut encoder)
        }
    }

    #[test]
    fn an_expired_leaf_and_its_problem_are_shown() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let status = Status {
            id: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
            leaf_not_after: 90,
            root_not_after: 1000,
            rotations: 3,
            taken: at(50),
            failures: 2,
            problem: Some(Arc::from("no \"file\"")),
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(At(status, at(100))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"writ_identity_expiry_seconds{of="leaf"} -10"#,
            r#"writ_identity_expiry_seconds{of="root"} 900"#,
            "writ_identity_renewed_timestamp_seconds 50",
            "writ_identity_rotations_total 3",
            "writ_identity_failures_total 2",
            "writ_identity_problem 1",
            r#"writ_identity_info{id="spiffe://cluster.local/ns/a/sa/b",problem="no \"file\""} 1"#,
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
    }
}
