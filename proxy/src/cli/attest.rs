//! `writ attest`: what crypto this binary runs.

use std::io::{self, Write};
use std::process::ExitCode;

use fips::{Attestation, Offered};

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
    let fips = attestation.not_approved().map_or_else(
        || "yes: module in its approved mode, suites, groups and signatures approved throughout".to_owned(),
        |reason| format!("no: {reason}"),
    );
    writeln!(out, "module      {} {}", attestation.module, attestation.module_version)?;
    writeln!(out, "flavour     {}", attestation.flavour)?;
    writeln!(out, "validation  {}", attestation.validation.as_str())?;
    writeln!(out, "            {}", attestation.statement)?;
    writeln!(out, "self-test   {} ({})", attestation.self_test.as_str(), attestation.self_test_run)?;
    writeln!(out, "FIPS        {fips}")?;
    write_list(out, "suites", &attestation.suites)?;
    write_list(out, "groups", &attestation.groups)
}

fn write_list(out: &mut impl Write, title: &str, offered: &[Offered]) -> io::Result<()> {
    for (index, offered) in offered.iter().enumerate() {
        let title = if index == 0 { title } else { "" };
        let approved = if offered.approved { "approved" } else { "not approved" };
        writeln!(out, "{title:<11} {:<40} {approved}", offered.name)?;
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
        assert_eq!(json["fips"], attestation.fips);
        assert_eq!(json["self_test"], "passed");
        assert_eq!(json["validation"]["status"], attestation.validation.as_str());
        assert_eq!(table.contains("FIPS        yes"), attestation.fips, "{table}");
        assert!(table.contains(json["module_version"].as_str().unwrap()), "{table}");
        assert!(table.contains(json["statement"].as_str().unwrap()), "{table}");
        for name in json["suites"].as_array().unwrap().iter().chain(json["groups"].as_array().unwrap()) {
            assert!(table.contains(name["name"].as_str().unwrap()), "{table}");
        }
    }
}
