//! `writ explain`.
