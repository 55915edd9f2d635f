//! What remains after CONNECT, Upgrade and opaque TCP: bytes both ways, with their record.
