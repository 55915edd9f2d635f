//! [`Reject`]: why a request or connection can't go on, which status its caller gets, and whether another attempt may help.

use std::fmt;

use http::StatusCode;

use crate::decision::{Reason, Stage};

/// A request or connection that can't go on. What the caller learns is the status and an opaque record id; `detail`
/// goes to the record only.
#[derive(Debug)]
pub struct Reject {
    /// Where it ended.
    pub stage: Stage,
    /// Why.
    pub reason: Reason,
    /// For the operator: what failed, and what to look at next.
    pub detail: Option<Box<str>>,
    /// A status that the refusing stage chose instead of the reason's own.
    pub status: Option<StatusCode>,
}

impl Reject {
    /// A rejection without detail.
    pub const fn new(stage: Stage, reason: Reason) -> Self {
        Self { stage, reason, detail: None, status: None }
    }

    /// A rejection with a text for the operator.
    pub fn because(stage: Stage, reason: Reason, detail: impl fmt::Display) -> Self {
        Self { stage, reason, detail: Some(detail.to_string().into()), status: None }
    }

    /// The HTTP status the caller gets.
    pub fn status(&self) -> StatusCode {
        match self.status {
            Some(status) => status,
            None if self.server_refused() => StatusCode::SERVICE_UNAVAILABLE,
            None => http_status(self.reason),
        }
    }

    /// The grpc-status a gRPC caller gets.
    pub fn grpc_status(&self) -> u8 {
        match self.status {
            _ if self.server_refused() => GRPC_UNAVAILABLE,
            // Chosen for HTTP: a caller of gRPC gets what it means there.
            Some(status) if matches!(self.stage, Stage::Consult | Stage::Limit) => grpc_status_of(status),
            _ => grpc_status(self.reason),
        }
    }

    /// The way to the server is refused, as where that did not prove who it is: nothing that its caller may or may not do
    /// changes that.
    fn server_refused(&self) -> bool {
        matches!(self.stage, Stage::Pick | Stage::Connect)
            && http_status(self.reason) == StatusCode::FORBIDDEN
    }

    /// Whether nothing of the request can have been acted on, so that another attempt is safe for any method.
    pub fn before_request(&self) -> bool {
        matches!(
            self.reason,
            Reason::ConnectRefused | Reason::ConnectTimeout | Reason::TlsFailed | Reason::IdleRace
        ) && matches!(self.stage, Stage::Connect | Stage::Send)
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage.as_str(), self.reason.as_str())?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Reject {}

/// The table "how a request ended" of the decision record.
pub fn http_status(reason: Reason) -> StatusCode {
    use Reason::*;
    match reason {
        MalformedRequest | AmbiguousLength => StatusCode::BAD_REQUEST,
        HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        NoToken | JwtInvalid => StatusCode::UNAUTHORIZED,
        ClientStalled => StatusCode::REQUEST_TIMEOUT,
        MatchedDeny | NoAllowMatched | QuarantinedPolicy | ProviderDenied | ProviderUnavailable
        | JwtAudience | PlaintextUnderStrict | NotFips | UntrustedRoot | IdentityMismatch | Expired
        | NotYetValid | Revoked | NoIdentity | BadCertificate => StatusCode::FORBIDDEN,
        NoRoute => StatusCode::NOT_FOUND,
        Misdirected => StatusCode::MISDIRECTED_REQUEST,
        InvalidBackend => StatusCode::INTERNAL_SERVER_ERROR,
        UnknownDestination | BadResponse => StatusCode::BAD_GATEWAY,
        RequestTimeout | BackendTimeout => StatusCode::GATEWAY_TIMEOUT,
        NotDetected | HandshakeFailed | LoopDetected | Overloaded | LimiterUnavailable | MtlsUnavailable
        | NoEndpoints | EjectedAll | BreakerOpen | ConnectRefused | ConnectTimeout | TlsFailed
        | ResetBeforeResponse | IdleRace | RetriesExhausted | ClientClosed | UpstreamReset
        | PolicyChanged | CertificateRevoked | CredentialExpired | DrainDeadline => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Redirected => StatusCode::FOUND,
        FaultInjected | NotReached => StatusCode::INTERNAL_SERVER_ERROR,
        Mtls
        | Tls
        | PlaintextPermitted
        | SvidVerified
        | NameVerified
        | JwtVerified
        | NoRequestAuthentication
        | MatchedAllow
        | NoPolicy
        | NoUserCondition
        | ProviderAllowed
        | WithinLimit
        | DecidedByServer
        | Complete => StatusCode::OK,
    }
}

const GRPC_UNAVAILABLE: u8 = 14;

/// gRPC status codes (grpc/grpc `doc/statuscodes.md`) of the same table.
pub fn grpc_status(reason: Reason) -> u8 {
    match http_status(reason) {
        StatusCode::OK => 0,
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR if reason != Reason::InvalidBackend => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => 8,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,
        _ => GRPC_UNAVAILABLE,
    }
}

/// The gRPC code of a refusal with an HTTP status (grpc/grpc `doc/http-grpc-status-mapping.md`; 429 as limits have it).
fn grpc_status_of(status: StatusCode) -> u8 {
    match status {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::NOT_FOUND => 12,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => 8,
        status if status.is_server_error() => GRPC_UNAVAILABLE,
        // Whatever else it says, it refuses.
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_identity_is_unavailable_and_a_caller_of_one_forbidden() {
        let server = Reject::new(Stage::Connect, Reason::IdentityMismatch);
        assert_eq!((server.status(), server.grpc_status()), (StatusCode::SERVICE_UNAVAILABLE, 14));
        let caller = Reject::new(Stage::Terminate, Reason::IdentityMismatch);
        assert_eq!((caller.status(), caller.grpc_status()), (StatusCode::FORBIDDEN, 7));
    }

    #[test]
    fn too_much_is_exhausted_and_what_nobody_counts_unavailable() {
        let limit = |reason| Reject::new(Stage::Limit, reason);
        let exceeded = limit(Reason::LimitExceeded);
        assert_eq!((exceeded.status(), exceeded.grpc_status()), (StatusCode::TOO_MANY_REQUESTS, 8));
        let quarantined =
            Reject { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..limit(Reason::QuarantinedPolicy) };
        for reject in [limit(Reason::LimiterUnavailable), quarantined] {
            assert_eq!((reject.status(), reject.grpc_status()), (StatusCode::SERVICE_UNAVAILABLE, 14));
        }
    }
}
