//! `writ intercept`: redirection rules of the current network namespace.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipnet::IpNet;

use super::{colours, print};
use crate::net::intercept::{
    Backend, Error, Identity, Outcome, Plan, Report, Selection, Spec, is_privileged, namespace, verify,
};

/// Redirects this network namespace's TCP to the proxy, shows that it is redirected, or stops redirecting it.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the rules in place of any that Writ installed before; doing it twice is as doing it once.
    Install {
        #[command(flatten)]
        rules: RuleArgs,
        /// What puts the rules into the kernel.
        #[arg(long, value_enum, default_value = "auto", env = "WRIT_INTERCEPT_BACKEND")]
        backend: Backend,
        /// Print what would be done, as a shell script, and do nothing; without privileges, the script for a namespace
        /// that has no rules of Writ yet.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare the kernel's rules with those that the same flags would install, and make connections that show whether
    /// traffic is captured; exit 1 if some would not be.
    Verify {
        #[command(flatten)]
        rules: RuleArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove everything that `install` put in place, by whichever back end and with whichever flags.
    Remove {
        /// Print what would be done, as a shell script, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct RuleArgs {
    /// Where the proxy takes what the application sends.
    #[arg(long, value_name = "PORT", default_value_t = 15001, env = "WRIT_INTERCEPT_OUTBOUND_PORT")]
    outbound_port: u16,
    /// Where the proxy takes what others send to the application.
    #[arg(long, value_name = "PORT", default_value_t = 15006, env = "WRIT_INTERCEPT_INBOUND_PORT")]
    inbound_port: u16,
    /// User ids of the proxy, whose connections pass; default: 1337, unless --gid or --mark is given.
    #[arg(long, value_name = "UIDS", value_delimiter = ',', env = "WRIT_INTERCEPT_UID")]
    uid: Vec<u32>,
    /// Group ids of the proxy, whose connections pass.
    #[arg(long, value_name = "GIDS", value_delimiter = ',', env = "WRIT_INTERCEPT_GID")]
    gid: Vec<u32>,
    /// SO_MARK of the proxy's sockets (`run --mark`), which pass; decimal or 0x..
    #[arg(long, value_parser = mark, env = "WRIT_INTERCEPT_MARK")]
    mark: Option<u32>,
    /// Inbound ports to capture, or `*` for all.
    #[arg(long, value_name = "PORTS", default_value = "*", env = "WRIT_INTERCEPT_INCLUDE_INBOUND_PORTS")]
    include_inbound_ports: Selection<u16>,
    /// Inbound ports not to capture, beside --inbound-port and --outbound-port, which never are.
    #[arg(
        long,
        value_name = "PORTS",
        default_value = "15000,15008,15020,15021,15090",
        value_delimiter = ',',
        value_parser = port,
        env = "WRIT_INTERCEPT_EXCLUDE_INBOUND_PORTS"
    )]
    exclude_inbound_ports: Vec<u16>,
    /// Destinations to capture, or `*` for all.
    #[arg(long, value_name = "CIDRS", default_value = "*", value_parser = cidrs,
        env = "WRIT_INTERCEPT_INCLUDE_OUTBOUND_CIDRS")]
    include_outbound_cidrs: Selection<IpNet>,
    /// Destinations not to capture.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = cidr,
        env = "WRIT_INTERCEPT_EXCLUDE_OUTBOUND_CIDRS")]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Destination ports not to capture.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = port,
        env = "WRIT_INTERCEPT_EXCLUDE_OUTBOUND_PORTS")]
    exclude_outbound_ports: Vec<u16>,
}

/// Runs the command: 0 well, 1 failed or not captured, 2 wrong usage.
pub fn run(args: Args) -> ExitCode {
    let result = match args.command {
        Command::Install { rules, backend, dry_run } => install(&rules.into(), backend, dry_run),
        Command::Verify { rules, json } => report(&rules.into(), json),
        Command::Remove { dry_run } => remove(dry_run),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "writ intercept: {error}");
            ExitCode::from(if matches!(error, Error::Spec(_)) { 2 } else { 1 })
        }
    }
}

fn install(spec: &Spec, backend: Backend, dry_run: bool) -> Result<ExitCode, Error> {
    if dry_run {
        let plan = match is_privileged() {
            true => Plan::install(spec, backend)?,
            false => Plan::install_afresh(spec, backend)?,
        };
        return Ok(print(&plan.to_string()));
    }
    let plan = Plan::install(spec, backend)?;
    plan.apply()?;
    Ok(print(&format!(
        "Installed by {} in network namespace {}: outbound TCP goes to port {}, inbound TCP to port {}.\n\
         `writ intercept verify`, with the same flags, shows what is captured and what isn't.\n",
        plan.backend(),
        namespace(),
        spec.outbound_port,
        spec.inbound_port,
    )))
}

fn remove(dry_run: bool) -> Result<ExitCode, Error> {
    let plan = Plan::remove()?;
    if dry_run {
        return Ok(print(&plan.to_string()));
    }
    plan.apply()?;
    let done = if plan.is_empty() { "There was nothing to remove" } else { "Removed all rules of ours" };
    Ok(print(&format!("{done} in network namespace {}.\n", namespace())))
}

fn report(spec: &Spec, json: bool) -> Result<ExitCode, Error> {
    let report = verify(spec)?;
    let text = if json { json_of(&report) } else { table(&report, colours(&io::stdout())) };
    let printed = print(&text);
    Ok(if report.captured() { printed } else { ExitCode::FAILURE })
}

fn json_of(report: &Report) -> String {
    let mut value = serde_json::json!(report);
    value["captured"] = report.captured().into();
    format!("{value:#}\n")
}

fn table(report: &Report, colour: bool) -> String {
    let mut text = format!("network namespace {}\n", report.namespace);
    let mut line = |name: &str, mark: Mark, detail: &str| {
        text.push_str(&format!("  {name:<10} {}  {detail}\n", mark.show(colour)));
    };
    for family in &report.families {
        let name = family.family.to_string();
        match (&family.rules.problems[..], &family.rules.installed_by[..]) {
            ([], by) => line(&name, Mark::Good, &format!("rules as asked for, by {}", by.join(", "))),
            (problems, _) => {
                for problem in problems {
                    line(&name, Mark::Bad, &format!("rules: {problem}"));
                }
            }
        }
        for (what, outcome) in [("outbound", &family.outbound), ("to itself", &family.to_self)] {
            let (mark, detail) = match outcome {
                Outcome::Captured(detail) => (Mark::Good, format!("captured {detail}")),
                Outcome::NotCaptured(detail) => (Mark::Bad, format!("NOT captured {detail}")),
                Outcome::NoRoute(detail) => (Mark::Open, format!("nothing can leave {detail}")),
                Outcome::Skipped(detail) => (Mark::Open, format!("not tried: {detail}")),
            };
            line(what, mark, &detail);
        }
    }
    text.push_str("never captured:\n");
    for item in &report.not_captured {
        text.push_str(&format!("  - {item}\n"));
    }
    let verdict = if report.captured() {
        "Captured: what these flags cover goes to the proxy."
    } else {
        "NOT captured: some traffic that these flags cover would pass the proxy by."
    };
    text.push_str(verdict);
    text.push('\n');
    text
}

#[derive(Clone, Copy)]
enum Mark {
    Good,
    Bad,
    Open,
}

impl Mark {
    const fn show(self, colour: bool) -> &'static str {
        match (self, colour) {
            (Self::Good, true) => "\x1b[32mok  \x1b[0m",
            (Self::Good, false) => "ok  ",
            (Self::Bad, true) => "\x1b[31mFAIL\x1b[0m",
            (Self::Bad, false) => "FAIL",
            (Self::Open, true) => "\x1b[33m-   \x1b[0m",
            (Self::Open, false) => "-   ",
        }
    }
}

impl From<RuleArgs> for Spec {
    fn from(args: RuleArgs) -> Self {
        let mut proxy: Vec<Identity> = args.uid.into_iter().map(Identity::Uid).collect();
        proxy.extend(args.gid.into_iter().map(Identity::Gid));
        proxy.extend(args.mark.map(Identity::Mark));
        if proxy.is_empty() {
            proxy.push(Identity::Uid(DEFAULT_UID));
        }
        Self {
            outbound_port: args.outbound_port,
            inbound_port: args.inbound_port,
            proxy,
            include_inbound_ports: args.include_inbound_ports,
            exclude_inbound_ports: args.exclude_inbound_ports,
            include_outbound_cidrs: args.include_outbound_cidrs,
            exclude_outbound_cidrs: args.exclude_outbound_cidrs,
            exclude_outbound_ports: args.exclude_outbound_ports,
        }
    }
}

/// The user id that Istio's proxy has, for which manifests and security contexts are written.
const DEFAULT_UID: u32 = 1337;

/// Decimal or `0x..`, and not 0.
pub fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) => Err("mark 0 is that of every other socket".to_owned()),
        Ok(mark) => Ok(mark),
        Err(_) => Err("expected a number of 32 bits, decimal or 0x..".to_owned()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a port"))
}

/// A network, or one address; host bits are cleared.
fn cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is neither a CIDR nor an address"))
}

fn cidrs(text: &str) -> Result<Selection<IpNet>, String> {
    match text.trim() {
        "*" => Ok(Selection::All),
        list => list.split(',').map(cidr).collect::<Result<_, _>>().map(Selection::Only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(flags: &[&str]) -> Spec {
        let args = Args::try_parse_from([&["intercept", "install"], flags].concat()).unwrap();
        match args.command {
            Command::Install { rules, .. } => rules.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_istios() {
        let spec = spec(&[]);
        assert_eq!(spec.proxy, [Identity::Uid(1337)]);
        assert_eq!((spec.outbound_port, spec.inbound_port), (15001, 15006));
        assert_eq!(spec.excluded_inbound_ports(), [15000, 15001, 15006, 15008, 15020, 15021, 15090]);
        assert_eq!(spec.include_outbound_cidrs, Selection::All);
    }

    #[test]
    fn flags_become_a_specification() {
        let spec = spec(&[
            "--gid=7",
            "--mark=0x539",
            "--exclude-outbound-cidrs=10.1.2.3/8,192.0.2.7,fd00::1/8",
            "--include-outbound-cidrs=10.0.0.0/8",
            "--exclude-outbound-ports=3306,5432",
            "--include-inbound-ports=80,443",
        ]);
        assert_eq!(spec.proxy, [Identity::Gid(7), Identity::Mark(0x539)]);
        let excluded: Vec<String> = spec.exclude_outbound_cidrs.iter().map(IpNet::to_string).collect();
        assert_eq!(excluded, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
        assert_eq!(spec.include_inbound_ports, Selection::Only(vec![80, 443]));
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        for flag in [
            "--mark=0",
            "--exclude-outbound-cidrs=300.1.1.1",
            "--exclude-outbound-ports=http",
            "--include-inbound-ports=http",
            "--uid=me",
        ] {
            assert!(Args::try_parse_from(["intercept", "install", flag]).is_err(), "{flag}");
        }
    }
}
