//! writ.dev: MeshSettings.

mod provider;

pub(crate) use provider::{Asked, Callee, Limiter, Provider, optional};

use super::read::{At, Fields};
use super::{Meta, Resource};
use crate::snapshot::{
    AmbiguousPaths, ExpiredCredentials, OutboundTrafficPolicy, PathNormalization, ProxyProtocol,
    TrustedForwarders,
};

/// A MeshSettings; defaults filled in.
#[derive(Debug, Clone)]
pub(crate) struct MeshSettings {
    pub(crate) root_namespace: String,
    pub(crate) trust_domain_aliases: Vec<String>,
    pub(crate) outbound: OutboundTrafficPolicy,
    pub(crate) forwarding_identities: Vec<String>,
    pub(crate) trusted_forwarders: TrustedForwarders,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) path_normalization: PathNormalization,
    pub(crate) ambiguous_paths: AmbiguousPaths,
    /// File of the system's roots, on every proxy's file system.
    pub(crate) system_roots: Option<String>,
    pub(crate) expired_credentials: ExpiredCredentials,
    pub(crate) providers: Vec<Provider>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain_aliases: Vec::new(),
            outbound: OutboundTrafficPolicy::AllowAny,
            forwarding_identities: Vec::new(),
            trusted_forwarders: TrustedForwarders::default(),
            proxy_protocol: ProxyProtocol::default(),
            path_normalization: PathNormalization::Base,
            ambiguous_paths: AmbiguousPaths::RefuseTraversal,
            system_roots: None,
            expired_credentials: ExpiredCredentials::Cut,
            providers: Vec::new(),
        }
    }
}

const OUTBOUND: &[(&str, OutboundTrafficPolicy)] =
    &[("ALLOW_ANY", OutboundTrafficPolicy::AllowAny), ("REGISTRY_ONLY", OutboundTrafficPolicy::RegistryOnly)];

const NORMALIZATION: &[(&str, PathNormalization)] = &[
    ("DEFAULT", PathNormalization::Base),
    ("NONE", PathNormalization::None),
    ("BASE", PathNormalization::Base),
    ("MERGE_SLASHES", PathNormalization::MergeSlashes),
    ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
];

const AMBIGUOUS: &[(&str, AmbiguousPaths)] = &[
    ("KEEP", AmbiguousPaths::Keep),
    ("REFUSE_TRAVERSAL", AmbiguousPaths::RefuseTraversal),
    ("REFUSE", AmbiguousPaths::Refuse),
];

const EXPIRED: &[(&str, ExpiredCredentials)] =
    &[("CUT", ExpiredCredentials::Cut), ("KEEP", ExpiredCredentials::Keep)];

const KNOWN: &[&str] = &[
    "rootNamespace",
    "trustDomainAliases",
    "outboundTrafficPolicy",
    "forwardingIdentities",
    "trustedForwarders",
    "proxyProtocol",
    "pathNormalization",
    "systemRoots",
    "expiredCredentials",
    "extensionProviders",
];

/// Reads a MeshSettings. What can't be understood of it falls to the strict side.
pub(crate) fn mesh_settings(_: &Meta, object: Fields<'_>) -> Resource {
    let mut settings = MeshSettings::default();
    let Some(spec) = object.require("spec").and_then(|at| at.fields(KNOWN)) else {
        settings.outbound = OutboundTrafficPolicy::RegistryOnly;
        return Resource::MeshSettings(settings);
    };
    settings.root_namespace = spec.get("rootNamespace").and_then(At::text).unwrap_or(settings.root_namespace);
    settings.trust_domain_aliases = spec.get("trustDomainAliases").map(At::texts).unwrap_or_default();
    if let Some(policy) = spec.get("outboundTrafficPolicy") {
        let mode = policy.fields(&["mode"]).and_then(|fields| fields.require("mode"));
        settings.outbound =
            mode.and_then(|at| at.one_of(OUTBOUND)).unwrap_or(OutboundTrafficPolicy::RegistryOnly);
    }
    if let Some(list) = spec.get("forwardingIdentities") {
        settings.forwarding_identities = list.items().filter_map(identity).collect();
    }
    if let Some(at) = spec.get("trustedForwarders") {
        settings.trusted_forwarders = trusted_forwarders(at).unwrap_or_default();
    }
    if let Some(at) = spec.get("proxyProtocol") {
        settings.proxy_protocol = proxy_protocol(at).unwrap_or_default();
    }
    if let Some(at) = spec.get("pathNormalization") {
        path_normalization(at, &mut settings);
    }
    settings.system_roots = spec.get("systemRoots").and_then(At::text);
    if let Some(at) = spec.get("expiredCredentials") {
        settings.expired_credentials = at.one_of(EXPIRED).unwrap_or_default();
    }
    if let Some(list) = spec.get("extensionProviders") {
        settings.providers = provider::read(list);
    }
    Resource::MeshSettings(settings)
}

/// Who names a normalization gets Istio's meaning of it, and nothing refused beyond that, unless `ambiguous` says so.
fn path_normalization(at: At<'_>, settings: &mut MeshSettings) {
    let Some(fields) = at.fields(&["normalization", "ambiguous"]) else { return };
    let named = fields.get("normalization");
    if let Some(at) = named {
        let known = at.one_of(NORMALIZATION);
        settings.path_normalization = known.unwrap_or_default();
        if known.is_some() {
            settings.ambiguous_paths = AmbiguousPaths::Keep;
        }
    }
    match fields.get("ambiguous") {
        Some(at) => settings.ambiguous_paths = at.one_of(AMBIGUOUS).unwrap_or(AmbiguousPaths::Refuse),
        None if named.is_none() => fields.missing("normalization", "is required, or `ambiguous`"),
        None => {}
    }
}

/// `None` when any of it is wrong: then nobody is trusted.
fn trusted_forwarders(at: At<'_>) -> Option<TrustedForwarders> {
    let fields = at.fields(&["identities", "ipBlocks", "numTrustedProxies"])?;
    let identities =
        fields.get("identities").map_or(Some(Vec::new()), |at| at.items().map(identity).collect());
    let ip_blocks = fields.get("ipBlocks").map_or(Some(Vec::new()), ip_blocks);
    let hops = fields.get("numTrustedProxies").map_or(Some(0), |at| at.number(0, 64));
    let (identities, ip_blocks) = (identities?, ip_blocks?);
    if identities.is_empty() && ip_blocks.is_empty() {
        at.error("names nobody: X-Forwarded-For is believed of direct peers in identities or ipBlocks");
        return None;
    }
    Some(TrustedForwarders { identities, ip_blocks, num_trusted_proxies: hops? })
}

fn proxy_protocol(at: At<'_>) -> Option<ProxyProtocol> {
    let fields = at.fields(&["ports", "ipBlocks"])?;
    let ports: Option<Vec<u16>> = fields.require("ports").and_then(|at| at.items().map(At::port).collect());
    let ip_blocks = fields.require("ipBlocks").and_then(ip_blocks);
    let (ports, ip_blocks) = (ports?, ip_blocks?);
    if ports.is_empty() || ip_blocks.is_empty() {
        at.error("needs ports and ipBlocks: from whom is which port to expect a header?");
        return None;
    }
    Some(ProxyProtocol { ports, ip_blocks })
}

fn ip_blocks(at: At<'_>) -> Option<Vec<ipnet::IpNet>> {
    at.items().map(super::text::cidr).collect()
}

/// `spiffe://..`, exact or with one star at its end or start.
fn identity(at: At<'_>) -> Option<String> {
    let text = at.text()?;
    if text == "*" || !(text.starts_with("spiffe://") || text.starts_with('*')) {
        at.error(format!(
            "`{text}` must be spiffe://.., spiffe://..* or *suffix; everyone can't be trusted to forward"
        ));
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::tests::only;
    use super::*;

    fn settings(spec: &str) -> (bool, MeshSettings, Vec<String>) {
        let (object, found) = only(&format!(
            "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {spec}\n"
        ));
        let good = object.good;
        let object = std::sync::Arc::into_inner(object);
        // The file's own list is gone, so this is the only reference.
        match object.map(|object| object.resource) {
            Some(Resource::MeshSettings(settings)) => (good, settings, found),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_fields() {
        let (good, settings, found) = settings(
            "{rootNamespace: mesh, trustDomainAliases: [old.local], outboundTrafficPolicy: {mode: REGISTRY_ONLY}, forwardingIdentities: ['spiffe://cluster.local/ns/edge/*'], pathNormalization: {normalization: MERGE_SLASHES}, expiredCredentials: KEEP}",
        );
        assert!(good, "{found:?}");
        assert_eq!(settings.root_namespace, "mesh");
        assert_eq!(settings.trust_domain_aliases, ["old.local"]);
        assert_eq!(settings.outbound, OutboundTrafficPolicy::RegistryOnly);
        assert_eq!(settings.path_normalization, PathNormalization::MergeSlashes);
        assert_eq!(settings.expired_credentials, ExpiredCredentials::Keep);
        assert_eq!(settings.forwarding_identities.len(), 1);
    }

    #[test]
    fn who_is_trusted_to_say_for_whom_it_asks() {
        let (good, read, found) = settings(
            "{trustedForwarders: {identities: ['spiffe://a/b'], ipBlocks: [10.0.0.0/8, 192.0.2.1], numTrustedProxies: 1}, proxyProtocol: {ports: [80], ipBlocks: [10.0.0.0/8]}}",
        );
        assert!(good, "{found:?}");
        assert_eq!(read.trusted_forwarders.ip_blocks[1].to_string(), "192.0.2.1/32");
        assert_eq!(
            (read.trusted_forwarders.num_trusted_proxies, &*read.proxy_protocol.ports),
            (1, &[80][..])
        );
        for spec in [
            "trustedForwarders: {}",
            "trustedForwarders: {identities: ['*']}",
            "trustedForwarders: {ipBlocks: [10.0.0.0/40, 192.0.2.1]}",
            "trustedForwarders: {ipBlocks: [10.0.0.0/8], numTrustedProxies: -1}",
            "proxyProtocol: {ports: [80]}",
            "proxyProtocol: {ports: [], ipBlocks: [10.0.0.0/8]}",
            "proxyProtocol: {ports: [80], ipBlocks: [x]}",
        ] {
            let (good, read, _) = settings(&format!("{{{spec}}}"));
            assert!(!good, "{spec}");
            assert_eq!(read.trusted_forwarders, TrustedForwarders::default(), "{spec}");
            assert_eq!(read.proxy_protocol, ProxyProtocol::default(), "{spec}");
        }
    }

    #[test]
    fn naming_a_normalization_asks_for_istios_meaning() {
        use AmbiguousPaths::{Keep, Refuse, RefuseTraversal};
        use PathNormalization::{Base, MergeSlashes};
        for (spec, good, normalization, ambiguous) in [
            ("{}", true, Base, RefuseTraversal),
            ("{pathNormalization: {normalization: BASE}}", true, Base, Keep),
            ("{pathNormalization: {ambiguous: REFUSE}}", true, Base, Refuse),
            (
                "{pathNormalization: {normalization: MERGE_SLASHES, ambiguous: REFUSE_TRAVERSAL}}",
                true,
                MergeSlashes,
                RefuseTraversal,
            ),
            ("{pathNormalization: {normalization: MERGE}}", false, Base, RefuseTraversal),
            ("{pathNormalization: {normalization: BASE, ambiguous: ALLOW}}", false, Base, Refuse),
            ("{pathNormalization: {}}", false, Base, RefuseTraversal),
        ] {
            let (is_good, settings, _) = settings(spec);
            let read = (is_good, settings.path_normalization, settings.ambiguous_paths);
            assert_eq!(read, (good, normalization, ambiguous), "{spec}");
        }
    }

    #[test]
    fn a_mistake_falls_to_the_strict_side() {
        let (good, settings, found) =
            settings("{outboundTrafficPolicy: {mode: REGISTRY}, forwardingIdentities: ['*']}");
        assert!(!good);
        assert_eq!(found.len(), 2);
        assert_eq!(settings.outbound, OutboundTrafficPolicy::RegistryOnly);
        assert_eq!(settings.forwarding_identities, [] as [String; 0]);
    }
}
