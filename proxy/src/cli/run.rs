//! `writ run`.
