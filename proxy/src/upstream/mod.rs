//! Endpoint sets and their live state, picking, pools, connecting, sending.
