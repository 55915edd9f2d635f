//! The HTTP/1 codec: strict on both sides, shared by the server and the upstream client.
