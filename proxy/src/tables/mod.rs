//! Policy and routes compiled for speed: immutable, pure look-ups.
