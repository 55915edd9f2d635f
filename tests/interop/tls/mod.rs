//! One sidecar on loopback, and somebody else's TLS on the other end of it: Envoy's BoringSSL, OpenSSL, Go.

mod envoy;
mod envoy_client;
mod envoy_server;
mod go;
pub mod house;
mod openssl;
mod scan;
mod suites;
