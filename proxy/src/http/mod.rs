//! The straight line of a request.

pub mod attempt;
mod buffered;
pub mod consult;
pub mod deadline;
mod edge;
pub mod limit;
pub mod pipeline;
pub mod recorded;
pub mod reply;
pub mod resets;
pub mod rewrite;
pub mod sanitize;
pub mod serve;
pub mod serve_h1;
pub mod streams;
pub mod vouched;
