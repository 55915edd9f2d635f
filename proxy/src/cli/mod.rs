//! One file per subcommand.

pub mod admin;
pub mod attest;
pub mod check;
pub mod demo;
pub mod explain;
pub mod intercept;
pub mod run;
