//! What a finished handshake proves, in the words of the record.

use std::sync::Arc;

use rustls::{CipherSuite, CommonState, NamedGroup, ProtocolVersion};

use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::svid::Verified;
use crate::identity::{Proof, SpiffeId};
use crate::telemetry::{CertificateEvidence, TlsEvidence};

/// Who the caller is, and what proves it.
#[derive(Debug, Clone)]
pub struct PeerTls {
    /// Verified; `None`: the client was not asked.
    pub identity: Option<SpiffeId>,
    /// What was agreed.
    pub evidence: TlsEvidence,
    /// What proved the identity.
    pub certificate: Option<CertificateEvidence>,
    /// SHA-256 of the leaf: `Hash` of x-forwarded-client-cert.
    pub fingerprint: Option<[u8; 32]>,
    /// Distinguished name of the leaf, often empty: `Subject` of x-forwarded-client-cert. Any text: quote it.
    pub subject: Box<str>,
    /// What the identity rests on: see [`crate::identity::Identity::still_trusted`].
    pub proof: Option<Arc<Proof>>,
}

impl PeerTls {
    /// A client that was not asked who it is.
    pub(super) fn nobody(evidence: TlsEvidence) -> Self {
        Self {
            identity: None,
            evidence,
            certificate: None,
            fingerprint: None,
            subject: "".into(),
            proof: None,
        }
    }

    /// A client whose certificate was verified.
    pub(super) fn verified(verified: &Verified, leaf: &[u8], evidence: TlsEvidence) -> Self {
        Self {
            certificate: Some(certificate(verified)),
            identity: Some(verified.id.clone()),
            evidence,
            fingerprint: Some(fips::sha256(leaf)),
            subject: verified.subject.clone(),
            proof: Some(Arc::clone(&verified.proof)),
        }
    }
}

/// What proved an identity.
pub(super) fn certificate(verified: &Verified) -> CertificateEvidence {
    CertificateEvidence {
        trust_domain: Arc::clone(&verified.proof.trust_domain),
        serial: (&*verified.serial).into(),
        not_after: verified.not_after,
    }
}

/// What was agreed on a connection. `fips`: what rustls says of the connection as a whole.
pub(super) fn agreed(connection: &CommonState, fips: bool, sni: Option<Arc<str>>) -> TlsEvidence {
    TlsEvidence {
        version: connection.protocol_version().map_or("unknown", version),
        suite: connection.negotiated_cipher_suite().map_or("unknown", |suite| self::suite(suite.suite())),
        group: connection
            .negotiated_key_exchange_group()
            .map_or("unknown", |group| self::group(group.name())),
        fips,
        sni,
    }
}

/// A connection that is not approved, where it must be, goes no further. Configurations that could agree to one are refused
/// when they are made: this is for what that might miss.
pub(super) fn approved(evidence: &TlsEvidence, stage: Stage) -> Result<(), Reject> {
    check(fips::required(), evidence, stage)
}

fn check(required: bool, evidence: &TlsEvidence, stage: Stage) -> Result<(), Reject> {
    if !required || evidence.fips {
        return Ok(());
    }
    let TlsEvidence { version, suite, group, .. } = evidence;
    let detail = format_args!("TLS {version} with {suite} and {group} is not approved (--fips required)");
    Err(Reject::because(stage, Reason::NotFips, detail))
}

fn version(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "1.3",
        ProtocolVersion::TLSv1_2 => "1.2",
        _ => "unknown",
    }
}

/// IANA's names of the suites that the provider has.
fn suite(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        _ => "unknown",
    }
}

/// IANA's names of the groups that the provider has or will have.
fn group(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::secp256r1MLKEM768 => "SecP256r1MLKEM768",
        NamedGroup::X25519 => "x25519",
        NamedGroup::secp256r1 => "secp256r1",
        NamedGroup::secp384r1 => "secp384r1",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_approved_is_refused_where_it_must_be() {
        let mut evidence = TlsEvidence {
            version: "1.3",
            suite: "TLS_AES_256_GCM_SHA384",
            group: "x25519",
            fips: false,
            sni: None,
        };
        assert!(check(false, &evidence, Stage::Terminate).is_ok());
        let refused = check(true, &evidence, Stage::Terminate).unwrap_err();
        assert_eq!((refused.stage, refused.reason), (Stage::Terminate, Reason::NotFips));
        assert!(refused.detail.unwrap().contains("TLS_AES_256_GCM_SHA384 and x25519"));
        evidence.fips = true;
        assert!(check(true, &evidence, Stage::Terminate).is_ok());
    }

    #[test]
    fn the_attestation_uses_the_same_names() {
        let attestation = fips::install();
        let provider = fips::provider();
        let suites: Vec<_> = provider.cipher_suites.iter().map(|each| suite(each.suite())).collect();
        let groups: Vec<_> = provider.kx_groups.iter().map(|each| group(each.name())).collect();
        let names =
            |offered: &[fips::Offered]| offered.iter().map(|each| each.name.clone()).collect::<Vec<_>>();
        assert_eq!(suites, names(&attestation.suites));
        assert_eq!(groups, names(&attestation.groups));
    }
}
