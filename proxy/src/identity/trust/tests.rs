//! What is believed under which roots, lists and aliases, and what is remembered of it.

use std::time::{Duration, SystemTime};

use fips::ca::{Authority, Issued, Profile};
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::*;
use crate::identity::CLOCK_SKEW_SECONDS;
use crate::identity::fixture::{HOUR, authority, trust};

const OWN: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
const CLUSTER: &str = "cluster.local";

fn der(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()
}

fn leaf(root: &Authority, uri: &str) -> CertificateDer<'static> {
    der(&root.issue(&Profile::workload(uri, HOUR)).unwrap())
}

fn serial(leaf: &CertificateDer<'_>) -> Vec<u8> {
    X509Certificate::from_der(leaf).unwrap().1.raw_serial().to_vec()
}

fn revoking(root: &Authority, revoked: &[&CertificateDer<'_>]) -> String {
    let serials: Vec<_> = revoked.iter().map(|leaf| serial(leaf)).collect();
    let serials: Vec<_> = serials.iter().map(Vec::as_slice).collect();
    root.revocation_list(&serials, SystemTime::now() + HOUR).unwrap()
}

fn verify(trust: &Trust, leaf: &CertificateDer<'_>) -> Result<Arc<Verified>, Reason> {
    trust.verify(leaf, &[], Usage::Client, UnixTime::now()).map_err(|refusal| refusal.reason)
}

/// Seconds from now.
fn at(seconds: i64) -> UnixTime {
    let now = UnixTime::now().as_secs().cast_signed();
    UnixTime::since_unix_epoch(Duration::from_secs((now + seconds).cast_unsigned()))
}

#[test]
fn a_chain_that_was_seen_is_taken_from_memory_and_its_dates_are_not() {
    let root = authority(CLUSTER);
    let (trust, leaf) = (trust(&[(CLUSTER, &root)], &[], &[]), leaf(&root, OWN));
    let first = verify(&trust, &leaf).unwrap();
    assert!(Arc::ptr_eq(&first, &verify(&trust, &leaf).unwrap()));
    let as_server = trust.verify(&leaf, &[], Usage::Server, UnixTime::now()).unwrap();
    assert!(!Arc::ptr_eq(&first, &as_server), "verified for each use");

    let later = |seconds| {
        let outcome = trust.verify(&leaf, &[], Usage::Client, at(seconds)).map(drop);
        outcome.map_err(|refusal| (refusal.reason, refusal.detail.contains("expired at")))
    };
    assert_eq!(later(3600 + CLOCK_SKEW_SECONDS - 5), Ok(()));
    assert_eq!(later(3600 + CLOCK_SKEW_SECONDS + 5), Err((Reason::Expired, true)));
    assert_eq!(later(-60 - CLOCK_SKEW_SECONDS - 5), Err((Reason::NotYetValid, false)));
}

#[test]
fn clocks_may_differ_by_a_bound() {
    let root = authority(CLUSTER);
    let trust = trust(&[(CLUSTER, &root)], &[], &[]);
    let now = SystemTime::now();
    let cold = |not_before: i64, not_after: i64| {
        let at = |seconds: i64| {
            let span = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { now - span } else { now + span }
        };
        let profile =
            Profile { not_before: at(not_before), not_after: at(not_after), ..Profile::workload(OWN, HOUR) };
        verify(&trust, &der(&root.issue(&profile).unwrap())).map(drop)
    };
    assert_eq!(cold(-100, -CLOCK_SKEW_SECONDS + 10), Ok(()));
    assert_eq!(cold(-100, -CLOCK_SKEW_SECONDS - 10), Err(Reason::Expired));
    assert_eq!(cold(CLOCK_SKEW_SECONDS - 10, 100), Ok(()));
    assert_eq!(cold(CLOCK_SKEW_SECONDS + 10, 100), Err(Reason::NotYetValid));
}

#[test]
fn refusals_are_not_remembered_and_memory_is_bounded() {
    let root = authority(CLUSTER);
    let trust = trust(&[(CLUSTER, &root)], &[], &[]);
    let stranger = authority(CLUSTER);
    assert_eq!(verify(&trust, &leaf(&stranger, OWN)).map(drop), Err(Reason::UntrustedRoot));
    assert_eq!(trust.remembered(), 0);
    // Presented with something more each time, one certificate makes any number of chains.
    let leaf = leaf(&root, OWN);
    for index in 0..6000_u32 {
        let more = CertificateDer::from(index.to_be_bytes().to_vec());
        trust.verify(&leaf, &[more], Usage::Client, UnixTime::now()).unwrap();
    }
    assert!((2048..=4096).contains(&trust.remembered()), "{}", trust.remembered());
}

#[test]
fn a_longer_chain_than_any_use_has_is_refused_unread() {
    let root = authority(CLUSTER);
    let trust = trust(&[(CLUSTER, &root)], &[], &[]);
    let many = vec![CertificateDer::from(vec![0]); 9];
    let refusal = trust.verify(&leaf(&root, OWN), &many, Usage::Client, UnixTime::now()).unwrap_err();
    assert!(refusal.detail.contains("9 certificates presented besides the leaf"), "{refusal}");
}

#[test]
fn who_is_revoked_is_refused_and_what_was_proven_holds_no_more() {
    let root = authority(CLUSTER);
    let (bad, good) = (leaf(&root, OWN), leaf(&root, OWN));
    let before = trust(&[(CLUSTER, &root)], &[], &[]);
    let proofs = [&bad, &good].map(|leaf| Arc::clone(&verify(&before, leaf).unwrap().proof));
    let after = trust(&[(CLUSTER, &root)], &[revoking(&root, &[&bad])], &[]);
    assert_eq!(verify(&after, &bad).map(drop), Err(Reason::Revoked));
    assert_eq!(verify(&after, &good).map(drop), Ok(()));
    assert_eq!(proofs.each_ref().map(|proof| before.holds(proof, at(0))), [Ok(()), Ok(())]);
    assert_eq!(proofs.each_ref().map(|proof| after.holds(proof, at(0))), [Err(Reason::Revoked), Ok(())]);
}

#[test]
fn a_list_belongs_to_who_signed_it_though_another_has_the_name() {
    // As in a rotation: both are called "cluster.local root".
    let (old, new) = (authority(CLUSTER), authority(CLUSTER));
    let trust = |lists: &[String]| {
        let mut roots = Roots::default();
        let ders = [&old, &new]
            .map(|root| CertificateDer::from_pem_slice(root.certificate_pem().as_bytes()).unwrap());
        roots.insert(CLUSTER, &ders).unwrap();
        let ders: Vec<_> = lists
            .iter()
            .flat_map(|pem| crate::identity::revocation::decode(pem.as_bytes()).unwrap())
            .collect();
        let lists = crate::identity::revocation::read_all(ders.iter(), &[]).unwrap();
        Trust::new(CLUSTER, roots, lists.into(), Arc::default(), 1)
    };
    let (of_old, of_new) = (leaf(&old, OWN), leaf(&new, OWN));
    let trusting = trust(&[revoking(&old, &[&of_old, &of_new]), revoking(&new, &[])]);
    assert_eq!(verify(&trusting, &of_old).map(drop), Err(Reason::Revoked));
    assert_eq!(
        verify(&trusting, &of_new).map(drop),
        Ok(()),
        "the old root can't revoke what the new one signed"
    );
}

#[test]
fn a_root_that_is_taken_away_takes_with_it_what_it_vouched_for() {
    let (root, partner) = (authority(CLUSTER), authority("partner.example"));
    let billing = "spiffe://partner.example/billing";
    let both = trust(&[(CLUSTER, &root), ("partner.example", &partner)], &[], &[]);
    let proof = Arc::clone(&verify(&both, &leaf(&partner, billing)).unwrap().proof);
    assert_eq!(both.holds(&proof, at(0)), Ok(()));
    let alone = trust(&[(CLUSTER, &root)], &[], &[]);
    assert_eq!(alone.holds(&proof, at(0)), Err(Reason::UntrustedRoot));
    let replaced = authority("partner.example");
    let replaced = trust(&[(CLUSTER, &root), ("partner.example", &replaced)], &[], &[]);
    assert_eq!(replaced.holds(&proof, at(0)), Err(Reason::UntrustedRoot));
    assert_eq!(both.holds(&proof, at(3600 + CLOCK_SKEW_SECONDS + 5)), Err(Reason::Expired));
}

#[test]
fn an_expired_root_vouches_for_nobody() {
    let root = Authority::generate(CLUSTER, Duration::ZERO).unwrap();
    let trust = trust(&[(CLUSTER, &root)], &[], &[]);
    let leaf = leaf(&root, OWN);
    assert!(trust.verify(&leaf, &[], Usage::Client, at(CLOCK_SKEW_SECONDS - 5)).is_ok());
    let refusal = trust.verify(&leaf, &[], Usage::Client, at(CLOCK_SKEW_SECONDS + 5)).unwrap_err();
    assert_eq!(refusal.reason, Reason::Expired, "{refusal}");
}

#[test]
fn an_alias_is_vouched_for_by_our_roots_and_means_us() {
    let root = authority(CLUSTER);
    let former = leaf(&root, "spiffe://old.local/ns/bookinfo/sa/ratings");
    assert_eq!(verify(&trust(&[(CLUSTER, &root)], &[], &[]), &former).map(drop), Err(Reason::UntrustedRoot));
    let aliased = trust(&[(CLUSTER, &root)], &[], &["old.local"]);
    let verified = verify(&aliased, &former).unwrap();
    assert_eq!(&*verified.proof.trust_domain, CLUSTER);
    assert!(aliased.is(OWN, &verified.id) && aliased.is(verified.id.as_str(), &OWN.parse().unwrap()));
    assert!(!aliased.is("spiffe://old.local/ns/bookinfo/sa/other", &verified.id));
    assert!(!aliased.is("spiffe://else.local/ns/bookinfo/sa/ratings", &verified.id));

    // One with roots of its own is another's domain as far as roots go.
    let theirs = authority("old.local");
    let apart = trust(&[(CLUSTER, &root), ("old.local", &theirs)], &[], &["old.local"]);
    assert_eq!(verify(&apart, &former).map(drop), Err(Reason::UntrustedRoot));
}
