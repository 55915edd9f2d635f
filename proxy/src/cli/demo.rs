//! `writ demo`.
