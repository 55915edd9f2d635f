//! Sockets, original destination, detection, copying, interception rules: the only place where `unsafe` may stand.

mod buffers;
mod client_hello;
pub mod copy;
pub mod detect;
pub mod intercept;
pub mod interface;
mod prefixed;
mod proxy_protocol;
pub mod socket;

pub use copy::{Copy, Ended, How, Transferred};
pub use detect::{ClientHello, Detected, detect};
pub use interface::OwnListeners;
pub use prefixed::Prefixed;
pub use proxy_protocol::{ProxyHeaderError, proxy_header};
