//! Roles are lists of listeners.
