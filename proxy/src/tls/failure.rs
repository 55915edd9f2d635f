//! Why a handshake failed, as a reason of the record and a text for the operator.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::verify::Verdict;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::svid::Refusal;

/// Which side failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Why it failed: the verdict on the peer's certificate where that is what ended it.
pub(super) fn reject(role: Role, error: &io::Error, verdict: Option<Verdict>) -> Reject {
    let (stage, failed) = match role {
        Role::Server => (Stage::Terminate, Reason::HandshakeFailed),
        Role::Client => (Stage::Connect, Reason::TlsFailed),
    };
    if let Some(Err(refusal)) = verdict {
        return Reject { detail: Some(refusal.detail), ..Reject::new(stage, refusal.reason) };
    }
    match tls_error(error) {
        Some(Error::NoCertificatesPresented) => Reject::because(
            stage,
            Reason::NoIdentity,
            "the peer has no certificate for mesh mTLS; is it in the mesh, and its identity issued?",
        ),
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => {
            match other.0.downcast_ref::<Refusal>() {
                Some(refusal) => Reject::because(stage, refusal.reason, &refusal.detail),
                None => Reject::because(stage, failed, other),
            }
        }
        Some(Error::PeerIncompatible(why)) if fips::required() => Reject::because(
            stage,
            Reason::NotFips,
            format_args!("nothing in common that is approved (--fips required): {why:?}"),
        ),
        Some(error) => Reject::because(stage, failed, explain(error)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Reject::because(stage, failed, "the peer closed the connection during the handshake")
        }
        None => Reject::because(stage, failed, error),
    }
}

/// What a server's refusal looks like under TLS 1.3: the client's handshake is over before the server has seen its
/// certificate, so `connect` succeeds and the alert is met by the first read. Gives what such a read error means; `None`:
/// it is another error.
pub fn refused_by_server(error: &io::Error) -> Option<Reject> {
    match tls_error(error)? {
        Error::AlertReceived(alert) if about_certificate(*alert) => {
            Some(Reject::because(Stage::Connect, Reason::TlsFailed, explain_alert(*alert)))
        }
        _ => None,
    }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| inner.source()?.downcast_ref())
}

fn explain(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::InvalidMessage(
            InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::CertificatePayloadTooLarge,
        ) => "a handshake message of over 64 KiB; a certificate chain that long?".to_owned(),
        Error::InvalidMessage(InvalidMessage::MessageTooLarge) => {
            "a TLS record larger than any may be".to_owned()
        }
        Error::InvalidMessage(why) => {
            format!("what came is not TLS ({why:?}); plaintext sent to a TLS port?")
        }
        // What every client of TLS 1.2 says, and none of an older version can.
        Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired) => {
            "the client's TLS is older than 1.2, or it says nothing of the signatures that it takes"
                .to_owned()
        }
        Error::PeerIncompatible(why) => format!("no version, suite or group in common: {why:?}"),
        other => other.to_string(),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    if about_certificate(alert) {
        format!("the peer refused this proxy's certificate ({alert:?}); its record says why")
    } else {
        format!("the peer ended the handshake ({alert:?})")
    }
}

fn about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::*;
    matches!(
        alert,
        BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | UnknownCA
            | AccessDenied
            | CertificateRequired
    )
}
