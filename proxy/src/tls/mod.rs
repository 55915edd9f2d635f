//! Server and client TLS of the mesh, and the SPIFFE verifier.
