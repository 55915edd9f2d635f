//! Kinds as users write them: files to objects, with every mistake reported.

pub(crate) mod read;
pub(crate) mod yaml;
