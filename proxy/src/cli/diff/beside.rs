//! What changed beside what calls show.

use std::collections::{BTreeMap, BTreeSet};

use control_client::snapshot::{self, AuthorizationAction, Policy, Protocol};

/// What decides on access beside the policies that are compared, where it changed.
pub(super) fn beside(old: &Policy, new: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let tokens = |policy: &Policy| {
        let named = named(policy);
        let of = |each: snapshot::RequestAuthentication| {
            (name_in(&named, each.object), snapshot::RequestAuthentication { object: 0, ..each })
        };
        policy.request_authentication.iter().cloned().map(of).collect()
    };
    let limits = |policy: &Policy| {
        let named = named(policy);
        let of = |each: snapshot::RateLimit| {
            (name_in(&named, each.object), snapshot::RateLimit { object: 0, ..each })
        };
        policy.rate_limits.iter().cloned().map(of).collect()
    };
    let says = |names: BTreeSet<String>, what: &'static str| {
        names.into_iter().map(move |name| format!("{name} {what}"))
    };
    let names = differing(tokens(old), tokens(new));
    found.extend(says(names, "changes which tokens of end users are taken"));
    let names = differing(limits(old), limits(new));
    found.extend(says(names, "changes how often something may be done"));
    // Those that came or went, calls show.
    let (before, after) = (providers(old), providers(new));
    let names =
        |of: &[(String, Option<Asked>)]| of.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    let in_both: BTreeSet<String> = names(&before).intersection(&names(&after)).cloned().collect();
    let mut names = differing(before, after);
    names.retain(|name| in_both.contains(name));
    found.extend(says(names, "asks another provider, or in another way"));
    let asks =
        |policy: &Policy| !policy.authorization.is_empty() || !policy.request_authentication.is_empty();
    if asks(old) || asks(new) {
        found.extend(read_otherwise(old, new));
    }
    let (a, b) = (&old.mesh, &new.mesh);
    for (differs, field) in [
        (
            (a.path_normalization, a.ambiguous_paths) != (b.path_normalization, b.ambiguous_paths),
            "pathNormalization: paths are read otherwise",
        ),
        (
            a.trusted_forwarders != b.trusted_forwarders,
            "trustedForwarders: others say whom a request is from",
        ),
        (a.proxy_protocol != b.proxy_protocol, "proxyProtocol: others say whom a connection is from"),
        (a.outbound != b.outbound, "outboundTrafficPolicy: what may be called outside of the mesh"),
        (a.expired_credentials != b.expired_credentials, "expiredCredentials: what stays open"),
    ] {
        if differs {
            found.push(format!("MeshSettings changes {field}"));
        }
    }
    found
}

/// Ports whose declared protocol is another: what is not read as HTTP is judged as an opaque connection. One that nobody
/// declares anything for is read as its first bytes are.
fn read_otherwise(old: &Policy, new: &Policy) -> impl Iterator<Item = String> {
    let declared = |policy: &Policy| -> BTreeMap<u16, Protocol> {
        policy.inbound_ports.iter().filter_map(|each| Some((each.port, each.protocol?))).collect()
    };
    let (before, after) = (declared(old), declared(new));
    let numbers: BTreeSet<u16> = before.keys().chain(after.keys()).copied().collect();
    let differs = move |number: &u16| before.get(number) != after.get(number);
    numbers.into_iter().filter(differs).map(|number| {
        format!("port {number} is declared to be of another protocol: which of its traffic is judged as HTTP")
    })
}

/// Names of those that are not the same in both.
fn differing<T: PartialEq>(before: Vec<(String, T)>, after: Vec<(String, T)>) -> BTreeSet<String> {
    let gone = before.iter().filter(|each| !after.contains(each));
    let new = after.iter().filter(|each| !before.contains(each));
    gone.chain(new).map(|(name, _)| name.clone()).collect()
}

/// A provider and where it is.
type Asked = (snapshot::Provider, Option<snapshot::Backend>);

/// Whom CUSTOM policies ask, and how.
fn providers(policy: &Policy) -> Vec<(String, Option<Asked>)> {
    let named = named(policy);
    let asking = policy.authorization.iter().filter(|each| each.action == AuthorizationAction::Custom);
    let resolved = |each: &snapshot::AuthorizationPolicy| {
        let provider = policy.providers.get(each.provider? as usize)?;
        let backend = provider.backend.and_then(|backend| policy.backends.get(backend as usize));
        let backend = backend.map(|backend| snapshot::Backend { object: None, ..backend.clone() });
        // Places in lists say nothing.
        Some((snapshot::Provider { backend: None, ..provider.clone() }, backend))
    };
    asking.map(|each| (name_in(&named, each.object), resolved(each))).collect()
}

/// Whether access can't differ: objects may have moved in their lists.
pub(super) fn same(old: &Policy, new: &Policy) -> bool {
    let of = |policy: &Policy| -> Vec<(String, snapshot::AuthorizationPolicy)> {
        let named = named(policy);
        let mut all: Vec<_> = policy
            .authorization
            .iter()
            .map(|each| {
                (name_in(&named, each.object), snapshot::AuthorizationPolicy { object: 0, ..each.clone() })
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let modes = |policy: &Policy| {
        let peers = &policy.peer_authentication;
        let ports: Vec<_> = peers.ports.iter().map(|(port, mode)| (*port, mode.mode)).collect();
        (peers.default.mode, ports)
    };
    let domains =
        |policy: &Policy| (policy.mesh.trust_domain.clone(), policy.mesh.trust_domain_aliases.clone());
    let no_rules = old.authorization.is_empty() && new.authorization.is_empty();
    modes(old) == modes(new) && of(old) == of(new) && (no_rules || domains(old) == domains(new))
}

pub(super) fn named(policy: &Policy) -> Vec<String> {
    policy
        .objects
        .iter()
        .map(|object| format!("{} {}/{}", object.kind, object.namespace, object.name))
        .collect()
}

fn name_in(named: &[String], object: u32) -> String {
    named.get(object as usize).cloned().unwrap_or_default()
}
