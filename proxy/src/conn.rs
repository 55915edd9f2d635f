//! accept -> detect -> terminate -> admit -> serve, ending in one match: http or tcp.
