//! Ground floor: the only crate that names a crypto backend.
