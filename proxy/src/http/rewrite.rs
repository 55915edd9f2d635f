//! `rewrite`: header edits of the route, and what the mesh itself adds to a request.

use ::http::{Request, Response, StatusCode};

use super::pipeline::Chosen;
use super::{reply, sanitize, vouched};
use crate::body::Body;
use crate::telemetry::{Record, Side};

/// Edits a request on its way out.
pub fn request(chosen: &Chosen<'_>, request: &mut Request<Body>, record: &Record) {
    match chosen {
        Chosen::Backend(_, choice, _) => {
            for filters in choice.iter().flat_map(|choice| choice.filters()) {
                filters.edit_request(request);
            }
            // Whatever a route says of it, the client's own address stands last.
            if record.connection.side == Side::Gateway {
                vouched::came_by(&record.connection, request.headers_mut());
            }
            request.headers_mut().insert(reply::DECISION_ID, reply::decision_id(record.id));
        }
        Chosen::Application(..) | Chosen::Address(_) => {}
    }
}

/// Edits a response on its way back.
pub fn response(chosen: &Chosen<'_>, record: &Record, response: &mut Response<Body>) {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    sanitize::response(response.headers_mut(), switching);
    if let Chosen::Backend(_, Some(choice), _) = chosen {
        for filters in choice.filters() {
            filters.edit_response(response.headers_mut());
        }
    }
    // What those who were asked want of it.
    if let Some(asked) = &record.asked {
        asked.additions.apply(response.headers_mut());
        reply::tell_quota(asked.quota.as_ref(), response.headers_mut());
    }
}
