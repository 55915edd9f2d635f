//! What the certified module itself says of each service as it is used here: its service indicator (FIPS 140-3, IG 2.4.C),
//! beside a golden table. Where the table changes, look at the module's security policy before anything else.

#![allow(
    unsafe_code,
    reason = "the indicator has no interface in Rust; it reads a counter of this thread and nothing else"
)]

mod services;

use std::fmt::Write as _;

unsafe extern "C" {
    #[link_name = "aws_lc_fips_0_13_17_FIPS_service_indicator_before_call"]
    safe fn before_call() -> u64;
    #[link_name = "aws_lc_fips_0_13_17_FIPS_service_indicator_after_call"]
    safe fn after_call() -> u64;
}

/// Whether the module ran an approved service meanwhile.
fn indicates<T>(service: impl FnOnce() -> T) -> (bool, T) {
    let before = before_call();
    let result = service();
    (after_call() != before, result)
}

/// A table of services as they are asked.
#[derive(Default)]
struct Table(String);

impl Table {
    /// Runs a service.
    fn run<T>(&mut self, name: &str, service: impl FnOnce() -> T) -> T {
        let (approved, result) = indicates(service);
        writeln!(self.0, "{name}: {}", if approved { "approved" } else { "not indicated" }).unwrap();
        result
    }
}

/// A hybrid counts as soon as anything inside it does, so X25519MLKEM768 stands here for its ML-KEM. Of the TLS 1.2 PRF the
/// module knows one label alone, and of HKDF the second half: the first is no service of its own.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn the_services_in_use_are_indicated_as_the_table_says() {
    let mut table = Table::default();
    services::randomness(&mut table);
    services::digests(&mut table);
    services::key_derivation(&mut table);
    services::records(&mut table);
    services::key_exchange(&mut table);
    services::signatures(&mut table);
    services::tokens(&mut table);
    services::rsa_by_length(&mut table);
    println!("{}", table.0);
    assert_eq!(table.0, GOLDEN);
}

#[test]
fn nothing_is_indicated_where_nothing_is_done() {
    assert!(!indicates(|| ()).0);
}
