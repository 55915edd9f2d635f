//! Snapshot -> Tables -> swap; the only writer of Tables.
