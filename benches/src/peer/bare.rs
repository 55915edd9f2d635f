//! A pair of bare forwarders: this same program again, as `compare bare`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum as _;

use super::{Pair, PairSpec, Peer, Ports};
use crate::child::Child;
use crate::pki::{self, Identity};
use crate::world::World;

pub(super) fn start(world: &World, spec: PairSpec, ports: Ports, dir: &Path) -> Result<Pair> {
    // One version: it has no routes.
    let [mtls_entry, _] = ports.inbound;
    let [application, _] = ports.applications;
    let forwarder =
        |name: &str, listen: SocketAddr, target: SocketAddr, identity: &Identity, expect: Option<&str>| {
            let mut command = Command::new(world.program(Peer::Bare)?);
            command.arg("bare").args(["--listen", &listen.to_string(), "--target", &target.to_string()]);
            command.arg("--identity").arg(&identity.dir);
            if let Some(protocol) = spec.protocol.to_possible_value() {
                command.args(["--protocol", protocol.get_name()]);
            }
            if let Some(id) = expect {
                command.args(["--expect", id]);
            }
            Child::start(name, &mut command, world.cores, &dir.join(format!("{name}.log")))
        };
    Ok(Pair {
        inbound: forwarder("bare-inbound", mtls_entry, application, &world.pki.server, None)?,
        outbound: forwarder(
            "bare-outbound",
            ports.outbound,
            mtls_entry,
            &world.pki.client,
            Some(pki::SERVER),
        )?,
        entry: ports.outbound,
        mtls_entry,
        records: Vec::new(),
    })
}

/// A listener that asks for no certificate.
pub(super) fn start_server_only(
    world: &World,
    listen: SocketAddr,
    tickets: bool,
    dir: &Path,
) -> Result<Child> {
    let mut command = Command::new(world.program(Peer::Bare)?);
    command.args(["bare", "--server-only", "--protocol", "h1", "--listen", &listen.to_string()]);
    command.args(["--target", &world.v1.address.to_string()]);
    command.arg("--identity").arg(&world.pki.server.dir);
    if tickets {
        command.arg("--tickets");
    }
    Child::start("bare", &mut command, world.cores, &dir.join("bare.log"))
}
