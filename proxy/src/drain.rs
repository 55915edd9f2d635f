//! A guard per connection: graceful, then forced.
