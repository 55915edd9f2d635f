//! `writ attest`: what crypto this binary runs.

use std::io::{self, Write};
use std::process::ExitCode;

use fips::Attestation;

/// Flags of `writ attest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Exits 1 when the module's self-test fails or nothing can be written.
pub fn run(args: Args) -> ExitCode {
    let attestation = fips::install();
    let mut out = io::stdout().lock();
    let written =
        if args.json { write_json(&mut out, attestation) } else { write_table(&mut out, attestation) };
    match written {
        Ok(()) if attestation.self_test == fips::SelfTest::Passed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn write_json(out: &mut impl Write, attestation: &Attestation) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, attestation)?;
    writeln!(out)
}

fn write_table(out: &mut impl Write, attestation: &Attestation) -> io::Result<()> {
    let fips = match (attestation.fips, attestation.flavour) {
        (true, _) => "yes: module in FIPS mode, suites and groups approved throughout",
        (false, "fips") => "no: the module is, but not all that is offered is approved",
        (false, _) => "no: this build links the standard module",
    };
    writeln!(out, "module      {} {}", attestation.module, attestation.module_version)?;
    writeln!(out, "flavour     {}", attestation.flavour)?;
    writeln!(out, "self-test   {}", attestation.self_test.as_str())?;
    writeln!(out, "FIPS        {fips}")?;
    write_list(out, "suites", &attestation.suites)?;
    write_list(out, "groups", &attestation.groups)
}

fn write_list(out: &mut impl Write, title: &str, names: &[String]) -> io::Result<()> {
    for (index, name) in names.iter().enumerate() {
        writeln!(out, "{:<11} {name}", if index == 0 { title } else { "" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_json_say_the_same() {
        let attestation = fips::install();
        let (mut table, mut json) = (Vec::new(), Vec::new());
        write_table(&mut table, attestation).unwrap();
        write_json(&mut json, attestation).unwrap();
        let table = String::from_utf8(table).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["fips"], false);
        assert_eq!(json["self_test"], "passed");
        assert!(table.contains("no: this build links the standard module"), "{table}");
        assert!(table.contains(json["module_version"].as_str().unwrap()), "{table}");
        for name in json["suites"].as_array().unwrap().iter().chain(json["groups"].as_array().unwrap()) {
            assert!(table.contains(name.as_str().unwrap()), "{table}");
        }
    }
}
