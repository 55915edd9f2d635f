//! `limit`: rate limits taken of a request.

use ::http::Request;

use super::pipeline::{self, Line};
use crate::body::Body;
use crate::error::Reject;
use crate::generation::Held;
use crate::jwt::Outcome;
pub use crate::limit::Question;
use crate::limit::{self, Counted};
use crate::peer::{self, Peer};
use crate::stages::{self, Target};
use crate::tables::{Counting, LimitPhase, UserAttributes};
use crate::telemetry::Record;

/// Takes the limits that need nothing costly to be known. What services count is left to be asked.
pub fn before_authentication<'t>(
    line: &Line,
    held: &'t Held,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<Vec<Question<'t>>, Reject> {
    if !limits(line.target, held) {
        return Ok(Vec::new());
    }
    take(LimitPhase::BeforeAuthentication, line, None, held, request, record)
}

/// Takes the limits that ask for the end user, where there is one or none; what a token is refused for is said elsewhere.
pub fn after_authentication<'t>(
    line: &Line,
    user: &Outcome,
    held: &'t Held,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<Vec<Question<'t>>, Reject> {
    if !limits_users(line.target, held) || !stages::authenticated(record, user) {
        return Ok(Vec::new());
    }
    let user = user.verified().map(|user| &*user.attributes);
    take(LimitPhase::AfterAuthentication, line, user, held, request, record)
}

/// Asks services that count, and adds to the request what they want.
pub async fn ask(
    line: &Line,
    questions: Vec<Question<'_>>,
    held: &Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<(), Reject> {
    limit::ask(&line.worker, held, questions, record).await?.apply(request.headers_mut());
    Ok(())
}

fn limits(target: Target, held: &Held) -> bool {
    target.is_decided_here() && !held.tables.rate_limits().is_empty()
}

fn limits_users(target: Target, held: &Held) -> bool {
    target.is_decided_here() && held.tables.rate_limits().ask_for_users()
}

fn take<'t>(
    phase: LimitPhase,
    line: &Line,
    user: Option<&UserAttributes>,
    held: &'t Held,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<Vec<Question<'t>>, Reject> {
    let counted = counted(&line.peer, user, request, record);
    let counting = limit::counting(phase, &line.peer, held, &counted, record)?;
    limit::take(held, &counting, &counted, record)
}

/// Writes down what would be taken before the end user is known, or with `user`: after.
pub fn would_take(
    peer: &Peer,
    target: Target,
    user: Option<&Outcome>,
    held: &Held,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<(), Reject> {
    let phase = match user {
        None if limits(target, held) => LimitPhase::BeforeAuthentication,
        Some(user) if limits_users(target, held) && stages::authenticated(record, user) => {
            LimitPhase::AfterAuthentication
        }
        _ => return Ok(()),
    };
    let user = user.and_then(Outcome::verified).map(|user| &*user.attributes);
    let counted = counted(peer, user, request, record);
    let counting: Counting<'_> = limit::counting(phase, peer, held, &counted, record)?;
    limit::would_take(held, &counting, record);
    Ok(())
}

fn counted<'r>(
    peer: &'r Peer,
    user: Option<&'r UserAttributes>,
    request: &'r Request<Body>,
    record: &Record,
) -> Counted<'r> {
    Counted {
        connection: peer::attributes(&peer.facts),
        request: Some(pipeline::attributes(request, record, user)),
    }
}
