//! SPIFFE ids, the current certificate, and where it comes from.
