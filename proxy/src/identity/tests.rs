//! Sources of identities: what is taken, what is not, and what stays in force meanwhile.

use std::os::unix::fs::{MetadataExt, symlink};

use fips::ca::{Authority, Profile};

use super::fixture::{Dir, HOUR, authority};
use super::*;

const OWN: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";

fn load(dir: &Dir) -> Result<Arc<Identity>, IdentityError> {
    Identity::load(dir.source(), "cluster.local", None, None)
}

fn own() -> SpiffeId {
    OWN.parse().unwrap()
}

fn leaf(authority: &Authority) -> fips::ca::Issued {
    authority.issue(&Profile::workload(OWN, HOUR)).unwrap()
}

#[test]
fn either_set_of_names_is_read() {
    let root = authority("cluster.local");
    let issued = leaf(&root);
    let (kubernetes, helper) = (Dir::new(), Dir::new());
    kubernetes.write(&issued, root.certificate_pem());
    helper.put("svid.pem", &issued.certificate_pem);
    helper.put("svid_key.pem", &issued.key_pem);
    helper.put("svid_bundle.pem", root.certificate_pem());
    for dir in [kubernetes, helper] {
        let identity = load(&dir).unwrap();
        assert_eq!(identity.id().as_str(), OWN);
        assert_eq!(identity.generation(), 1);
        let left = identity.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left <= HOUR && left > HOUR - Duration::from_secs(60), "{left:?}");
    }
}

#[test]
fn federated_bundles_are_read_and_the_own_bundle_prevails() {
    let (root, partner) = (authority("cluster.local"), authority("partner.example"));
    let dir = Dir::new();
    dir.write(&leaf(&root), root.certificate_pem());
    dir.put("partner.example.bundle.pem", partner.certificate_pem());
    dir.put("cluster.local.bundle.pem", partner.certificate_pem());
    dir.put("Not-A-Domain.bundle.pem", "neither PEM");
    let identity = load(&dir).unwrap();
    let current = identity.current();
    assert_eq!(
        current.trust.roots().trust_domains().collect::<Vec<_>>(),
        ["cluster.local", "partner.example"]
    );
}

#[test]
fn what_no_peer_would_take_is_not_loaded() {
    let root = authority("cluster.local");
    let refused = |authority: &Authority, profile: &Profile| {
        let dir = Dir::new();
        dir.write(&authority.issue(profile).unwrap(), root.certificate_pem());
        load(&dir).unwrap_err().to_string()
    };
    let good = Profile::workload(OWN, HOUR);
    let past = SystemTime::now() - HOUR;
    let expired = Profile { not_before: past - HOUR, not_after: past, ..good.clone() };
    assert!(refused(&root, &expired).contains("expired at"));
    assert!(refused(&authority("cluster.local"), &good).contains("no root of trust domain cluster.local"));
    let error = refused(&root, &Profile::workload("spiffe://other.example/ns/a/sa/b", HOUR));
    assert!(error.contains("other.example"), "{error}");
}

#[test]
fn a_trust_domain_that_is_only_federated_is_not_the_own_one() {
    let (root, partner) = (authority("cluster.local"), authority("partner.example"));
    let dir = Dir::new();
    let issued = partner.issue(&Profile::workload("spiffe://partner.example/ns/a/sa/b", HOUR)).unwrap();
    dir.write(&issued, root.certificate_pem());
    dir.put("partner.example.bundle.pem", partner.certificate_pem());
    let error = load(&dir).unwrap_err();
    assert!(matches!(error, IdentityError::TrustDomain { .. }), "{error}");
    assert!(error.to_string().contains("--trust-domain"), "{error}");
}

#[test]
fn missing_and_unreadable_files_are_named() {
    let dir = Dir::new();
    assert!(load(&dir).unwrap_err().to_string().contains("tls.crt"));
    let root = authority("cluster.local");
    dir.write(&leaf(&root), root.certificate_pem());
    std::fs::remove_file(dir.path().join("tls.key")).unwrap();
    assert!(load(&dir).unwrap_err().to_string().contains("tls.key"));
    dir.put("tls.key", "no PEM at all");
    assert!(load(&dir).unwrap_err().to_string().starts_with("key: "));
    dir.put("tls.key", &"x".repeat((1 << 20) + 1));
    assert!(load(&dir).unwrap_err().to_string().contains("larger than 1 MiB"));
}

#[test]
fn a_half_written_pair_is_not_taken() {
    let root = authority("cluster.local");
    let (first, second) = (leaf(&root), leaf(&root));
    let dir = Dir::new();
    dir.write(&first, root.certificate_pem());
    let identity = load(&dir).unwrap();
    let before = Arc::clone(&identity.current().certified);

    dir.put("tls.crt", &second.certificate_pem);
    assert!(matches!(identity.reload(), Err(IdentityError::Key(_))));
    assert_eq!(identity.generation(), 1);
    assert!(Arc::ptr_eq(&before, &identity.current().certified));
    assert!(identity.problem().unwrap().contains("key does not fit"));

    dir.put("tls.key", &second.key_pem);
    assert!(identity.reload().unwrap());
    assert_eq!(identity.generation(), 2);
    assert_eq!(identity.problem(), None);
    assert!(!identity.reload().unwrap(), "nothing is new");
}

#[test]
fn a_certificate_that_runs_out_is_a_problem_until_there_is_another() {
    let root = authority("cluster.local");
    let dir = Dir::new();
    dir.write(&leaf(&root), root.certificate_pem());
    let identity = load(&dir).unwrap();
    let later = SystemTime::now() + 2 * HOUR;
    assert!(matches!(identity.reload_at(later), Err(IdentityError::Lapsed)));
    assert!(identity.problem().unwrap().contains("expired"));
    dir.write(&root.issue(&Profile::workload(OWN, 3 * HOUR)).unwrap(), root.certificate_pem());
    assert!(identity.reload_at(later).unwrap());
    assert_eq!(identity.problem(), None);
}

#[test]
fn a_swapped_symbolic_link_is_seen() {
    let root = authority("cluster.local");
    let dir = Dir::new();
    let version = |name: &str| {
        let (issued, to) = (leaf(&root), dir.path().join(name));
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("tls.crt"), &issued.certificate_pem).unwrap();
        std::fs::write(to.join("tls.key"), &issued.key_pem).unwrap();
        std::fs::write(to.join("ca.crt"), root.certificate_pem()).unwrap();
        let swap = dir.path().join("..data_tmp");
        symlink(name, &swap).unwrap();
        std::fs::rename(&swap, dir.path().join("..data")).unwrap();
    };
    version("..first");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let identity = load(&dir).unwrap();
    version("..second");
    assert!(identity.reload().unwrap());
}

#[tokio::test(start_paused = true)]
async fn watching_takes_what_comes() {
    let root = authority("cluster.local");
    let dir = Dir::new();
    dir.write(&leaf(&root), root.certificate_pem());
    let identity = load(&dir).unwrap();
    let mut generations = identity.subscribe();
    let watching = tokio::spawn(Arc::clone(&identity).watch());
    dir.write(&leaf(&root), root.certificate_pem());
    generations.wait_for(|&generation| generation == 2).await.unwrap();
    watching.abort();
}

#[test]
fn a_development_authority_is_shared_and_private() {
    let dir = Dir::new();
    let source = || Source::Dev(dir.path().join("ca"));
    let identities: Vec<_> = std::thread::scope(|scope| {
        let load = || Identity::load(source(), "cluster.local", Some(own()), None).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Whoever came first, all verify each other.
    for pair in identities.windows(2) {
        let (one, other) = (pair[0].current(), pair[1].current());
        let now = rustls_pki_types::UnixTime::now();
        other.trust.verify(&one.certified.cert[0], &[], svid::Usage::Client, now).unwrap();
    }
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("ca"), mode("ca/ca.key")), (0o700, 0o600));
}

#[test]
fn a_development_leaf_is_made_again_at_half_its_life() {
    let dir = Dir::new();
    let source = Source::Dev(dir.path().to_owned());
    let identity = Identity::load(source, "cluster.local", Some(own()), None).unwrap();
    assert!(!identity.reload().unwrap());
    assert!(identity.reload_at(SystemTime::now() + dev::LEAF_LIFETIME / 2).unwrap());
    assert_eq!(identity.generation(), 2);
}

#[test]
fn a_development_authority_of_another_domain_is_refused() {
    let dir = Dir::new();
    let source = || Source::Dev(dir.path().to_owned());
    Identity::load(source(), "cluster.local", Some(own()), None).unwrap();
    let other = "spiffe://other.example/ns/a/sa/b".parse().unwrap();
    assert!(Identity::load(source(), "other.example", Some(other), None).is_err());
}

#[test]
fn what_is_missing_is_said() {
    let dir = Dir::new();
    let dev = Identity::load(Source::Dev(dir.path().to_owned()), "cluster.local", None, None).unwrap_err();
    assert!(dev.to_string().contains("--workload"), "{dev}");
    let domain = Identity::load(dir.source(), "Cluster.Local", None, None).unwrap_err();
    assert!(domain.to_string().contains("`Cluster.Local`"), "{domain}");
}

#[test]
fn keys_are_not_shown() {
    let root = authority("cluster.local");
    let (dir, issued) = (Dir::new(), leaf(&root));
    dir.write(&issued, root.certificate_pem());
    let shown = format!("{:?} {:?}", load(&dir).unwrap(), issued);
    assert!(!shown.to_lowercase().contains("private"), "{shown}");
}

fn serial_of(issued: &fips::ca::Issued) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    webpki::EndEntityCert::try_from(&der).unwrap().serial().to_vec()
}

#[test]
fn revocation_lists_beside_the_certificate_are_followed_apart_from_it() {
    let root = authority("cluster.local");
    let (dir, own, peer) = (Dir::new(), leaf(&root), leaf(&root));
    dir.write(&own, root.certificate_pem());
    let identity = load(&dir).unwrap();
    let mut trust = identity.subscribe_trust();
    assert!(!identity.reload_lists().unwrap(), "there is none");

    let list = |revoked: &[&[u8]]| root.revocation_list(revoked, SystemTime::now() + HOUR).unwrap();
    dir.put("crl.pem", &list(&[&serial_of(&peer)]));
    assert!(identity.reload_lists().unwrap());
    assert_eq!((identity.trust_generation(), *trust.borrow_and_update()), (2, 2));
    assert!(!identity.reload_lists().unwrap() && !identity.reload().unwrap(), "nothing is new");

    dir.put("crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert!(identity.reload_lists().is_err());
    assert!(identity.problem().unwrap().contains("revocation list"));
    assert_eq!(identity.trust_generation(), 2, "the old ones stay");

    // A renewal of the leaf alone leaves trust, and what was verified under it, alone.
    dir.write(&leaf(&root), root.certificate_pem());
    assert!(identity.reload().unwrap());
    assert_eq!(identity.trust_generation(), 2);

    dir.put("crl.pem", &list(&[&serial_of(&own)]));
    assert!(identity.reload_lists().unwrap());
    assert_eq!(identity.problem(), None);
    std::fs::remove_file(dir.path().join("crl.pem")).unwrap();
    assert!(identity.reload_lists().unwrap());
}

#[test]
fn a_proxy_whose_own_certificate_is_revoked_takes_no_traffic_and_the_list_holds_for_others() {
    let root = authority("cluster.local");
    let (dir, own) = (Dir::new(), leaf(&root));
    dir.write(&own, root.certificate_pem());
    let identity = load(&dir).unwrap();
    dir.put("crl.pem", &root.revocation_list(&[&serial_of(&own)], SystemTime::now() + HOUR).unwrap());
    assert!(identity.reload_lists().unwrap());
    assert_eq!(identity.health(SystemTime::now()), Health::Failing("the certificate is revoked".into()));
    assert!(load(&dir).unwrap_err().to_string().contains("revoked"));
}

#[test]
fn a_list_that_was_asked_for_must_be_there_and_be_in_time() {
    let root = authority("cluster.local");
    let dir = Dir::new();
    dir.write(&leaf(&root), root.certificate_pem());
    let asked = dir.path().join("revoked.pem");
    let load = || Identity::load(dir.source(), "cluster.local", None, Some(asked.clone()));
    assert!(load().unwrap_err().to_string().contains("revoked.pem"));
    dir.put("revoked.pem", &root.revocation_list(&[], SystemTime::now() - HOUR).unwrap());
    let identity = load().unwrap();
    let Health::Degraded(why) = identity.health(SystemTime::now()) else { panic!("it is late") };
    assert!(why.contains("out of date"), "{why}");
    std::fs::remove_file(&asked).unwrap();
    assert!(identity.reload_lists().is_err());
}

#[test]
fn health_degrades_before_it_fails() {
    let root = authority("cluster.local");
    let dir = Dir::new();
    dir.write(&leaf(&root), root.certificate_pem());
    let identity = load(&dir).unwrap();
    let at = |left: u64| identity.health(identity.not_after() - Duration::from_secs(left));
    assert_eq!(at(1800), Health::Well);
    assert!(
        matches!(at(600), Health::Degraded(why) if why.contains("expires in 600s and has not been renewed"))
    );
    assert!(matches!(at(30), Health::Failing(why) if why.contains("expires in 30s")));
    assert!(matches!(at(0), Health::Failing(why) if why.contains("has expired")));
}

#[test]
fn roots_overlap_for_as_long_as_the_source_has_both() {
    let (old, new) = (authority("cluster.local"), authority("cluster.local"));
    let both = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let dir = Dir::new();
    dir.write(&leaf(&old), old.certificate_pem());
    let identity = load(&dir).unwrap();
    let peer = |root: &Authority| {
        use rustls_pki_types::pem::PemObject;
        let issued = leaf(root);
        let der = rustls_pki_types::CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes());
        let now = rustls_pki_types::UnixTime::now();
        identity.current().trust.verify(&der.unwrap(), &[], svid::Usage::Client, now).map(drop).is_ok()
    };
    assert_eq!((peer(&old), peer(&new)), (true, false));
    dir.put("ca.crt", &both);
    assert!(identity.reload().unwrap());
    assert_eq!((peer(&old), peer(&new)), (true, true));
    dir.write(&leaf(&new), &both);
    assert!(identity.reload().unwrap());
    dir.put("ca.crt", new.certificate_pem());
    assert!(identity.reload().unwrap());
    assert_eq!((peer(&old), peer(&new)), (false, true));
    assert_eq!(identity.trust_generation(), 3);
}
