//! Server and client TLS of the mesh, and the SPIFFE verifier.

/// Client side of TLS.
#[derive(Debug)]
pub struct ClientTls;
