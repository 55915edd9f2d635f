//! `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`: the question, and its answer read with care.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};

use super::messages::{
    self, DescriptorStatus, Entry, OK, OVER_LIMIT, RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
};
use crate::edits::{Edit, Edits, is_forbidden_in_request, is_forbidden_in_response};
use crate::tables::GlobalLimit;
use crate::telemetry::Quota;
use crate::upstream::call::Unheard;

/// The method.
pub(super) const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// An answer that was understood.
#[derive(Debug)]
pub(super) struct Heard {
    /// It is too much.
    pub(super) over: bool,
    /// How much there is, by the strictest that the service told of.
    pub(super) quota: Option<Quota>,
    /// What it adds to the request, if that goes on.
    pub(super) request: Edits,
    /// What it adds to the response, or to the refusal.
    pub(super) response: Edits,
    /// Body of a refusal.
    pub(super) body: Bytes,
    /// The first header that it wanted to add and may not: nothing of it was done.
    pub(super) ignored: Option<String>,
}

/// One descriptor: what tells keys apart.
pub(super) fn question(global: &GlobalLimit, entries: Vec<(String, String)>) -> RateLimitRequest {
    let entries = entries.into_iter().map(|(key, value)| Entry { key, value }).collect();
    RateLimitRequest {
        domain: global.domain.to_string(),
        descriptors: vec![RateLimitDescriptor { entries }],
        hits_addend: global.hits_addend,
    }
}

/// What was answered about a limit of this name. That it is not too much must be said: a message with nothing in it says
/// nothing.
pub(super) fn heard(name: &str, response: RateLimitResponse) -> Result<Heard, Unheard> {
    let over = match response.overall_code {
        OK => false,
        OVER_LIMIT => true,
        other => {
            return Err(Unheard::NotUnderstood(format!("a RateLimitResponse with overall_code {other}")));
        }
    };
    let mut ignored = None;
    let mut edits = |headers: Vec<messages::HeaderValue>, forbidden: fn(&HeaderName) -> bool| {
        let mut edits = Edits::default();
        for header in headers {
            match HeaderName::from_bytes(header.key.as_bytes()) {
                Ok(name) if !forbidden(&name) && name != CONTENT_LENGTH => {
                    edits.0.push(Edit::Append(name, value(header)?));
                }
                _ => drop(ignored.get_or_insert(header.key)),
            }
        }
        Ok(edits)
    };
    let request = edits(response.request_headers_to_add, is_forbidden_in_request)?;
    let response_edits = edits(response.response_headers_to_add, is_forbidden_in_response)?;
    Ok(Heard {
        over,
        quota: quota(name, over, &response.statuses),
        request,
        response: response_edits,
        body: response.raw_body,
        ignored,
    })
}

fn value(header: messages::HeaderValue) -> Result<HeaderValue, Unheard> {
    let bytes = if header.value.is_empty() { header.raw_value } else { Bytes::from(header.value) };
    HeaderValue::from_maybe_shared(bytes)
        .map_err(|_| Unheard::NotUnderstood("a header value with characters no header may have".into()))
}

/// The status that leaves least, of those that say of how much.
fn quota(name: &str, over: bool, statuses: &[DescriptorStatus]) -> Option<Quota> {
    let limited = statuses.iter().filter_map(|status| Some((status, status.current_limit?)));
    let (status, limit) = limited.min_by_key(|(status, _)| status.limit_remaining)?;
    let window = limit.window_secs().map(|seconds| format!(";w={seconds}")).unwrap_or_default();
    let policy = format!("{name};q={}{window}", limit.requests_per_unit);
    let reset = status.duration_until_reset.and_then(|reset| {
        let whole = u64::try_from(reset.seconds).ok()?;
        Some(whole.saturating_add(u64::from(reset.nanos > 0)))
    });
    Some(Quota {
        policy: HeaderValue::try_from(policy).ok()?,
        remaining: if over { 0 } else { status.limit_remaining.into() },
        reset_secs: reset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(key: &str, value: &str) -> messages::HeaderValue {
        messages::HeaderValue { key: key.into(), value: value.into(), raw_value: Bytes::new() }
    }

    fn status(requests: u32, unit: i32, remaining: u32, seconds: i64) -> DescriptorStatus {
        DescriptorStatus {
            current_limit: Some(messages::RateLimit { requests_per_unit: requests, unit }),
            limit_remaining: remaining,
            duration_until_reset: Some(messages::Duration { seconds, nanos: 1 }),
        }
    }

    #[test]
    fn the_strictest_status_is_told() {
        let unlimited = DescriptorStatus::default();
        let statuses = vec![status(100, 2, 7, 30), unlimited, status(1000, 4, 3, 5000)];
        let response = RateLimitResponse { overall_code: OK, statuses, ..RateLimitResponse::default() };
        let quota = heard("\"a\"", response).unwrap().quota.unwrap();
        assert_eq!(quota.policy, "\"a\";q=1000;w=86400");
        assert_eq!((quota.remaining, quota.reset_secs), (3, Some(5001)));
        let none = RateLimitResponse { overall_code: OVER_LIMIT, ..RateLimitResponse::default() };
        let heard = heard("\"a\"", none).unwrap();
        assert!(heard.over && heard.quota.is_none());
    }

    #[test]
    fn only_ok_lets_pass_and_nothing_is_added_that_may_not_be() {
        for code in [0, 3, -1] {
            let response = RateLimitResponse { overall_code: code, ..RateLimitResponse::default() };
            assert!(matches!(heard("\"a\"", response), Err(Unheard::NotUnderstood(_))), "{code}");
        }
        let adding = |request: Vec<messages::HeaderValue>| {
            let response = RateLimitResponse { overall_code: OK, ..RateLimitResponse::default() };
            heard("\"a\"", RateLimitResponse { request_headers_to_add: request, ..response })
        };
        let heard = adding(vec![header("X-A", "1"), header(":path", "/x"), header("host", "x")]).unwrap();
        assert_eq!(heard.request.0.len(), 1);
        assert_eq!(heard.ignored.as_deref(), Some(":path"));
        assert!(matches!(adding(vec![header("x-a", "a\r\nb")]), Err(Unheard::NotUnderstood(_))));
    }
}
