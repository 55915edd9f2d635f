//! Serving, end to end.
