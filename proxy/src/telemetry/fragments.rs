//! What does not change from record to record, rendered once: the configuration's and the connection's part of a line.

use std::net::SocketAddr;
use std::sync::OnceLock;

use super::json;
use super::record::{CertificateEvidence, ConfigFacts, ConnectionFacts, TlsEvidence, UserEvidence};

/// [`ConfigFacts`] as every record shows them.
#[derive(Debug, Clone, Default)]
pub struct ConfigFragment(OnceLock<Box<str>>);

impl ConfigFragment {
    pub(super) fn of(&self, facts: &ConfigFacts) -> &str {
        self.0.get_or_init(|| {
            let mut out = Vec::with_capacity(160);
            json::raw(&mut out, r#","config":{"version":"#);
            json::number(&mut out, facts.version);
            json::raw(&mut out, r#","digest":"#);
            json::string(&mut out, &facts.digest);
            if let Some(revision) = &facts.revision {
                json::raw(&mut out, r#","revision":"#);
                json::bounded_string(&mut out, revision, NAME_LIMIT);
            }
            json::raw(&mut out, r#","stale":"#);
            json::boolean(&mut out, facts.stale);
            json::raw(&mut out, "}");
            json::into_text(out).into()
        })
    }
}

/// [`ConnectionFacts`] as every record of the connection shows them.
#[derive(Debug, Default)]
pub struct ConnectionFragments(OnceLock<Box<ConnectionTexts>>);

#[derive(Debug)]
pub(super) struct ConnectionTexts {
    /// `source`, and `destination` up to where a service may follow.
    pub(super) peers: Box<str>,
    /// Evidence, empty where there is none.
    pub(super) encryption: Box<str>,
    pub(super) certificate: Box<str>,
}

impl ConnectionFragments {
    pub(super) fn of(&self, facts: &ConnectionFacts) -> &ConnectionTexts {
        self.0.get_or_init(|| {
            let (mut encryption, mut certificate) = (Vec::new(), Vec::new());
            if let Some(tls) = &facts.tls {
                tls_evidence(tls, &mut encryption);
            }
            if let Some(evidence) = &facts.certificate {
                certificate_evidence(evidence, &mut certificate);
            }
            Box::new(ConnectionTexts {
                peers: peers(facts.source, facts.source_identity.as_deref(), facts.destination),
                encryption: json::into_text(encryption).into(),
                certificate: json::into_text(certificate).into(),
            })
        })
    }
}

fn peers(source: SocketAddr, identity: Option<&str>, destination: SocketAddr) -> Box<str> {
    let mut out = Vec::with_capacity(192);
    json::raw(&mut out, r#","source":{"address":"#);
    json::address(&mut out, source);
    if let Some(identity) = identity {
        json::raw(&mut out, r#","identity":"#);
        json::bounded_string(&mut out, identity, IDENTITY_LIMIT);
    }
    json::raw(&mut out, r#"},"destination":{"address":"#);
    json::address(&mut out, destination);
    json::into_text(out).into()
}

/// The `evidence` member of the `encryption` check.
pub(super) fn tls_evidence(tls: &TlsEvidence, out: &mut Vec<u8>) {
    if tls.version.is_empty() {
        // What `writ explain` is told of a handshake that did not happen proves nothing.
        return;
    }
    json::raw(out, r#","evidence":{"tls":"#);
    json::string(out, tls.version);
    json::raw(out, r#","suite":"#);
    json::string(out, tls.suite);
    json::raw(out, r#","group":"#);
    json::string(out, tls.group);
    json::raw(out, r#","fips":"#);
    json::boolean(out, tls.fips);
    if let Some(sni) = &tls.sni {
        json::raw(out, r#","sni":"#);
        json::bounded_string(out, sni, NAME_LIMIT);
    }
    json::raw(out, "}");
}

/// The `evidence` member of the `service-authentication` check.
pub(super) fn certificate_evidence(certificate: &CertificateEvidence, out: &mut Vec<u8>) {
    json::raw(out, r#","evidence":{"#);
    if !certificate.trust_domain.is_empty() {
        json::raw(out, r#""trust_domain":"#);
        json::bounded_string(out, &certificate.trust_domain, NAME_LIMIT);
        json::raw(out, ",");
    }
    json::raw(out, r#""serial":"#);
    json::bounded_string(out, &certificate.serial, NAME_LIMIT);
    json::raw(out, r#","not_after":"#);
    json::timestamp(out, certificate.not_after);
    json::raw(out, "}");
}

/// The `evidence` member of the `user-authentication` check.
pub(super) fn user_evidence(user: &UserEvidence, out: &mut Vec<u8>) {
    json::raw(out, r#","evidence":{"issuer":"#);
    json::bounded_string(out, &user.issuer, NAME_LIMIT);
    if !user.subject.is_empty() {
        json::raw(out, r#","subject":"#);
        json::bounded_string(out, &user.subject, NAME_LIMIT);
    }
    if let Some(expires) = user.expires {
        json::raw(out, r#","expires":"#);
        json::timestamp(out, expires);
    }
    json::raw(out, "}");
}

/// Bytes of an authority, method, service, backend or revision that a record shows.
pub(super) const NAME_LIMIT: usize = 256;
/// Bytes of an identity that a record shows: SPIFFE ids end at 2048, ones that are used far before.
pub(super) const IDENTITY_LIMIT: usize = 512;
