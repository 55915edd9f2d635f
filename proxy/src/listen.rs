//! Bind, and an accept loop that survives running out of descriptors.
