//! `writ intercept`.
