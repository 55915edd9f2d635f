//! `envoy.service.auth.v3.Authorization/Check`: the question as Envoy asks it, and its answer read with care.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use control_client::snapshot::{GrpcCheck, JWT_METADATA};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Version};
use percent_encoding::utf8_percent_encode;

use super::answer::{Allowed, Denied, Metadata};
use super::edit::{QueryEdit, UNRESERVED};
use super::messages::{
    Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption,
    HttpRequest, HttpResponse, ListValue, MetadataContext, OkHttpResponse, Peer, Request, SocketAddress,
    Struct, Timestamp, TlsSession, Value, ValueKind,
};
use super::{Caller, Heard, Shown, refusing};
use crate::edits::Edit;
use crate::tables::{Consultation, Provider, UserAttributes, WORD_LISTS};
use crate::telemetry::{ConnectionFacts, Record};
use crate::upstream::call::Unheard;

/// The method.
pub(super) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What is asked.
pub(super) fn question(
    provider: &Provider,
    check: &GrpcCheck,
    consultation: &Consultation,
    caller: Caller<'_>,
    shown: Option<Shown<'_>>,
    own_identity: Option<&str>,
    record: &Record,
) -> CheckRequest {
    let facts: &ConnectionFacts = &record.connection;
    let since_epoch = record.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        // Less than a thousand million.
        nanos: i32::try_from(since_epoch.subsec_nanos()).unwrap_or_default(),
    };
    let http = shown.map(|shown| http_request(shown, provider, facts.tls.is_some(), record));
    let mut context_extensions: HashMap<_, _> = check.context_extensions.iter().cloned().collect();
    if let Some(object) = record.config.objects.get(consultation.policy) {
        context_extensions.insert("policy".into(), format!("{}/{}", object.namespace, object.name));
    }
    let sni = facts.tls.as_ref().and_then(|tls| tls.sni.as_deref());
    let certificate = caller.peer.proof().filter(|_| check.peer_certificate);
    let source = Peer {
        certificate: certificate.map(|proof| url_encoded_pem(proof.leaf())).unwrap_or_default(),
        ..peer(facts.source, facts.source_identity.as_deref())
    };
    let user = caller.user.filter(|_| check.user_claims);
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(peer(facts.destination, own_identity)),
            request: Some(Request { time: Some(time), http }),
            context_extensions,
            metadata_context: user.map(metadata),
            tls_session: sni.map(|sni| TlsSession { sni: sni.into() }),
        }),
    }
}

fn peer(address: SocketAddr, identity: Option<&str>) -> Peer {
    let socket_address =
        SocketAddress { address: address.ip().to_canonical().to_string(), port_value: address.port().into() };
    Peer {
        address: Some(Address { socket_address: Some(socket_address) }),
        principal: identity.unwrap_or_default().into(),
        certificate: String::new(),
    }
}

/// As Envoy has it: PEM with lines of 64 characters (RFC 7468), of which only what is unreserved in a URL stands for itself.
fn url_encoded_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() * 5 / 4);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII.
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    utf8_percent_encode(&pem, UNRESERVED).to_string()
}

/// The claims of a user where Istio has them, lists of words split as there.
fn metadata(user: &UserAttributes) -> MetadataContext {
    let mut payload = Struct::of(&user.claims);
    for (_, value) in payload.fields.iter_mut().filter(|(name, _)| WORD_LISTS.contains(&name.as_str())) {
        if let Some(ValueKind::Text(words)) = &value.kind {
            let word = |word: &str| Value { kind: Some(ValueKind::Text(word.into())) };
            let values = words.split(' ').filter(|word| !word.is_empty()).map(word).collect();
            value.kind = Some(ValueKind::List(ListValue { values }));
        }
    }
    let payload = Value { kind: Some(ValueKind::Struct(payload)) };
    let namespace = Struct { fields: BTreeMap::from([("payload".into(), payload)]) };
    MetadataContext { filter_metadata: HashMap::from([(JWT_METADATA.into(), namespace)]) }
}

fn http_request(shown: Shown<'_>, provider: &Provider, tls: bool, record: &Record) -> HttpRequest {
    let path = shown.uri.path_and_query().map_or("/", |target| target.as_str());
    let host = shown.authority.unwrap_or_default();
    let scheme = if tls { "https" } else { "http" };
    let mut headers = joined(shown.headers);
    // Envoy's own names for what is no header.
    for (name, value) in
        [(":method", shown.method.as_str()), (":path", path), (":authority", host), (":scheme", scheme)]
    {
        headers.insert(name.into(), value.into());
    }
    headers.remove("host");
    let id = headers.get("x-request-id").cloned().unwrap_or_else(|| record.id_text());
    let body = shown.body.cloned().unwrap_or_default();
    let as_bytes = provider.body.is_some_and(|body| body.as_bytes);
    let (body, raw_body) = if as_bytes { (String::new(), body) } else { (text(&body), Bytes::new()) };
    HttpRequest {
        id,
        method: shown.method.as_str().into(),
        headers,
        path: path.into(),
        host: host.into(),
        scheme: scheme.into(),
        size: shown.size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1),
        protocol: match shown.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        }
        .into(),
        body,
        raw_body,
    }
}

/// Headers by name; several lines of one are joined by a comma. Bytes that are not UTF-8 become `!`, as in Envoy.
fn joined(headers: &HeaderMap) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = HashMap::with_capacity(headers.keys_len() + 4);
    for (name, value) in headers {
        let value = text(value.as_bytes());
        match all.get_mut(name.as_str()) {
            Some(known) => {
                known.push(',');
                known.push_str(&value);
            }
            None => drop(all.insert(name.as_str().to_owned(), value)),
        }
    }
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::REPLACEMENT_CHARACTER, "!")
}

/// What was answered. An allowance must be said: a message with nothing in it says nothing.
pub(super) fn heard(response: CheckResponse) -> Result<Heard, Unheard> {
    let not_understood = |why: &str| Err(Unheard::NotUnderstood(why.into()));
    let metadata = response.dynamic_metadata.and_then(|fields| Metadata::new(fields.to_json()));
    match (response.status.map(|status| status.code), response.http_response) {
        (None, None) => not_understood("a CheckResponse without status and response"),
        (Some(0), Some(HttpResponse::Denied(_))) => {
            not_understood("a CheckResponse that allows with a denied_response")
        }
        (Some(0), None) => Ok(Heard::Allowed(Allowed { metadata, ..Allowed::default() })),
        (None | Some(0), Some(HttpResponse::Ok(ok))) => allowed(ok, metadata),
        (_, Some(HttpResponse::Denied(denied))) => Ok(Heard::Denied(self::denied(denied, metadata))),
        (Some(_), _) => Ok(Heard::Denied(Denied { metadata, ..Denied::new(refusing(403)) })),
    }
}

fn allowed(ok: OkHttpResponse, metadata: Option<Metadata>) -> Result<Heard, Unheard> {
    let old_metadata = ok.dynamic_metadata.and_then(|fields| Metadata::new(fields.to_json()));
    let mut allowed = Allowed { metadata: old_metadata.or(metadata), ..Allowed::default() };
    let mut good = true;
    for option in ok.headers {
        let action = Action::of(&option, Action::Set);
        good &=
            with(option, |name, value| allowed.edit_request(name, |name| Some(action.edit(name, value?))));
    }
    for name in &ok.headers_to_remove {
        good &= allowed.edit_request(name.to_ascii_lowercase().as_bytes(), |name| Some(Edit::Remove(name)));
    }
    for option in ok.response_headers_to_add {
        let action = Action::of(&option, Action::Append);
        good &=
            with(option, |name, value| allowed.edit_response(name, |name| Some(action.edit(name, value?))));
    }
    let set = ok.query_parameters_to_set.into_iter().map(|each| (each.key, Some(each.value)));
    let removed = ok.query_parameters_to_remove.into_iter().map(|name| (name, None));
    allowed.query = set.chain(removed).map(|(name, value)| QueryEdit { name, value }).collect();
    if !good {
        return Err(Unheard::NotUnderstood("a header value with characters no header may have".into()));
    }
    Ok(Heard::Allowed(allowed))
}

fn denied(denied: DeniedHttpResponse, metadata: Option<Metadata>) -> Denied {
    let status = denied.status.map_or(403, |status| u16::try_from(status.code).unwrap_or_default());
    let mut refusal = Denied { body: denied.body.into(), metadata, ..Denied::new(refusing(status)) };
    for option in denied.headers {
        let append = Action::of(&option, Action::Set) == Action::Append;
        with(option, |name, value| {
            if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name), value)
                && name != header::CONTENT_LENGTH
            {
                refusal.tell(name, value, append);
            }
            true
        });
    }
    refusal
}

/// A header option's name in lower case and value; `None` as value: not one that a header may have.
fn with(option: HeaderValueOption, edit: impl FnOnce(&[u8], Option<HeaderValue>) -> bool) -> bool {
    let Some(header) = option.header else { return true };
    let value = if header.value.is_empty() {
        HeaderValue::from_maybe_shared(header.raw_value)
    } else {
        HeaderValue::from_str(&header.value)
            .or_else(|_| HeaderValue::from_maybe_shared(Bytes::from(header.value)))
    };
    edit(header.key.to_ascii_lowercase().as_bytes(), value.ok())
}

/// `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Append,
    AddIfAbsent,
    Set,
    Replace,
}

impl Action {
    /// `append` decides where it is set. `append_action` can't be told from its default, for which each field of these
    /// messages has always had a meaning of its own.
    fn of(option: &HeaderValueOption, default: Self) -> Self {
        match (option.append, option.append_action) {
            (Some(append), _) if append.value => Self::Append,
            (Some(_), 0) => Self::Set,
            (_, 1) => Self::AddIfAbsent,
            (_, 2) => Self::Set,
            (_, 3) => Self::Replace,
            (..) => default,
        }
    }

    fn edit(self, name: HeaderName, value: HeaderValue) -> Edit {
        match self {
            Self::Append => Edit::Append(name, value),
            Self::AddIfAbsent => Edit::AddIfAbsent(name, value),
            Self::Set => Edit::Set(name, value),
            Self::Replace => Edit::Replace(name, value),
        }
    }
}
