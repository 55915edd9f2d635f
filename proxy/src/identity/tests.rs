//! Sources of identities: what is taken, what is not, and what stays in force meanwhile.

use std::os::unix::fs::{MetadataExt, symlink};

use fips::ca::{Authority, Profile};

use super::fixture::{Dir, HOUR, authority};
use super::*;

const OWN: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";

fn load(dir: &Dir) -> Result<Arc<Identity>, IdentityError> {
    Identity::load(dir.source(), "cluster.local", None)
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
    assert_eq!(current.roots.trust_domains().collect::<Vec<_>>(), ["cluster.local", "partner.example"]);
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
        let load = || Identity::load(source(), "cluster.local", Some(own())).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Whoever came first, all verify each other.
    for pair in identities.windows(2) {
        let (one, other) = (pair[0].current(), pair[1].current());
        let now = rustls_pki_types::UnixTime::now();
        svid::verify(&one.certified.cert[0], &[], &other.roots, svid::Usage::Client, now).unwrap();
    }
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("ca"), mode("ca/ca.key")), (0o700, 0o600));
}

#[test]
fn a_development_leaf_is_made_again_at_half_its_life() {
    let dir = Dir::new();
    let source = Source::Dev(dir.path().to_owned());
    let identity = Identity::load(source, "cluster.local", Some(own())).unwrap();
    assert!(!identity.reload().unwrap());
    assert!(identity.reload_at(SystemTime::now() + dev::LEAF_LIFETIME / 2).unwrap());
    assert_eq!(identity.generation(), 2);
}

#[test]
fn a_development_authority_of_another_domain_is_refused() {
    let dir = Dir::new();
    let source = || Source::Dev(dir.path().to_owned());
    Identity::load(source(), "cluster.local", Some(own())).unwrap();
    let other = "spiffe://other.example/ns/a/sa/b".parse().unwrap();
    assert!(Identity::load(source(), "other.example", Some(other)).is_err());
}

#[test]
fn what_is_missing_is_said() {
    let dir = Dir::new();
    let dev = Identity::load(Source::Dev(dir.path().to_owned()), "cluster.local", None).unwrap_err();
    assert!(dev.to_string().contains("--workload"), "{dev}");
    let domain = Identity::load(dir.source(), "Cluster.Local", None).unwrap_err();
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
