//! `writ attest`.
