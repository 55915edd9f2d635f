//! Serving HTTP/1.0 and 1.1 on one connection: requests in, answers out, one after the other, until either side has enough.
//!
//! One state machine owns the socket. While it waits for a request it holds no buffer, and its timer is made when it first waits.
//!
//! A client that closes its sending side after a whole request may only have half-closed, or may be gone; TCP doesn't tell. It gets its
//! answer if that comes within [`Timeouts::half_close`], and is taken for gone after. A reset, or a TLS connection cut without its closing
//! message, is gone at once; whatever was under way is dropped then, and its record says so.

mod connection;
mod ending;
mod exchange;
mod outgoing;
#[cfg(test)]
mod tests;
mod timer;
mod upload;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

pub use connection::Connection;
pub use exchange::CanUpgrade;

use crate::body::{Body, BodyError};
use crate::drain::DrainWatch;
use crate::error::Reject;
use crate::h1::Timeouts;

/// What answers requests.
pub trait Handler {
    /// Body of its answers.
    type Body: http_body::Body<Data = Bytes, Error = BodyError> + Unpin;

    /// Answers a request. Dropped when the client leaves.
    fn handle(&self, request: Request<Body>) -> Pin<Box<dyn Future<Output = Response<Self::Body>>>>;

    /// Answers what is not a request, or not a whole one; the connection closes after. Dropped unsent if the client left.
    fn refuse(&self, reject: Reject, partial: Partial) -> Response<Self::Body>;

    /// Whether an answer was ended from elsewhere.
    fn is_ended(&self, body: &Self::Body) -> bool {
        let _ = body;
        false
    }

    /// Told that the client does not take its answer, whose body is dropped after.
    fn untaken(&self, body: &mut Self::Body) {
        let _ = body;
    }
}

/// What could be read of a refused request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Partial {
    /// Its method.
    pub method: Option<Method>,
    /// Its path, without query.
    pub path: Option<Box<str>>,
}

/// What bounds a connection from outside.
#[derive(Debug, Clone)]
pub struct Control {
    /// How long it waits.
    pub timeouts: Rc<Timeouts>,
    /// Tells it to finish.
    pub drain: Rc<DrainWatch>,
}

/// How serving ended.
#[derive(Debug)]
pub enum Ended<IO, B> {
    /// The connection is over.
    Closed,
    /// What follows is not HTTP: 101, or success of CONNECT, whose head the client has.
    Tunnel {
        /// The connection.
        io: IO,
        /// What the client already sent.
        read_ahead: Bytes,
        /// The answer; its extensions hold the upstream half.
        response: Box<Response<B>>,
    },
}

/// Serves a connection. Dropping the future drops whatever is under way.
pub fn serve<IO, H>(io: IO, handler: H, control: Control) -> Connection<IO, H>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    Connection::new(io, handler, control)
}
