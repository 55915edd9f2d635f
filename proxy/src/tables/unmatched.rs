//! A call that nothing allowed, kept so that policies can be asked why after it is answered.

use std::net::IpAddr;

use http::HeaderMap;

use super::attributes::{ConnectionAttributes, RequestAttributes, UserAttributes};
use super::{Considered, Tables};

/// A call that nothing allowed.
#[derive(Debug)]
pub struct Unmatched {
    source_identity: Option<Box<str>>,
    source_ip: IpAddr,
    remote_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    sni: Option<Box<str>>,
    request: Option<Request>,
}

#[derive(Debug)]
struct Request {
    method: Box<str>,
    host: Option<Box<str>>,
    path: Box<str>,
    headers: HeaderMap,
    remote_ip: Option<IpAddr>,
    user: Option<UserAttributes>,
}

impl Unmatched {
    /// Copies what policies look at. `request`: of HTTP.
    pub fn of(connection: &ConnectionAttributes<'_>, request: Option<&RequestAttributes<'_>>) -> Self {
        let request = request.map(|request| Request {
            method: request.method.into(),
            host: request.host.map(Into::into),
            path: request.path.into(),
            headers: request.headers.clone(),
            remote_ip: request.remote_ip,
            user: request.user.cloned(),
        });
        Self {
            source_identity: connection.source_identity.map(Into::into),
            source_ip: connection.source_ip,
            remote_ip: connection.remote_ip,
            destination_ip: connection.destination_ip,
            destination_port: connection.destination_port,
            sni: connection.sni.map(Into::into),
            request,
        }
    }

    /// As [`Tables::consider`] says of it.
    pub fn consider(&self, tables: &Tables, limit: usize) -> Considered {
        let connection = ConnectionAttributes {
            source_identity: self.source_identity.as_deref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
        };
        let request = self.request.as_ref().map(|request| RequestAttributes {
            method: &request.method,
            host: request.host.as_deref(),
            path: &request.path,
            headers: &request.headers,
            remote_ip: request.remote_ip,
            user: request.user.as_ref(),
        });
        tables.consider(&connection, request.as_ref(), limit)
    }
}
