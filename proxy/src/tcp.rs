//! Opaque TCP.
