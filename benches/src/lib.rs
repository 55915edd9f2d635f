//! Harness of the comparison.
