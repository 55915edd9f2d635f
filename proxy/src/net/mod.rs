//! Sockets, original destination, detection, copying, interception rules: the only place for `unsafe`.
