//! BackendTLSPolicy: TLS to the backends of Services, and the names they must prove.

use super::super::read::{At, Fields};
use super::super::{Meta, Resource};
use crate::snapshot::ServerId;

/// A BackendTLSPolicy.
#[derive(Debug, Default)]
pub(crate) struct BackendTlsPolicy {
    /// Services of its namespace; `None`: can't be understood.
    pub(crate) targets: Option<Vec<ServiceTarget>>,
    /// `None`: can't be understood, so nothing is sent to its targets.
    pub(crate) validation: Option<Validation>,
}

/// One of `targetRefs`.
#[derive(Debug)]
pub(crate) struct ServiceTarget {
    pub(crate) service: String,
    /// Name of a port; `None`: all of the Service's.
    pub(crate) section: Option<String>,
    pub(crate) line: u32,
}

/// `validation`.
#[derive(Debug)]
pub(crate) struct Validation {
    /// Server name to send; without names of its own below, also the one to prove.
    pub(crate) hostname: String,
    pub(crate) names: Vec<ServerId>,
    pub(crate) roots: Roots,
}

/// Where roots are.
#[derive(Debug)]
pub(crate) enum Roots {
    /// ConfigMaps of its namespace, with the line that names each.
    ConfigMaps(Vec<(String, u32)>),
    /// `wellKnownCACertificates: System`, and the line that says so.
    System(u32),
}

/// Reads a BackendTLSPolicy.
pub(crate) fn backend_tls_policy(_: &Meta, object: Fields<'_>) -> Resource {
    let mut policy = BackendTlsPolicy::default();
    if let Some(spec) =
        object.require("spec").and_then(|at| at.fields(&["targetRefs", "validation", "options"]))
    {
        policy.targets = spec.require("targetRefs").and_then(targets);
        policy.validation = spec.require("validation").and_then(validation);
        if let Some(options) = spec.get("options").and_then(At::open_fields)
            && !options.is_empty()
        {
            options.at().error("no options are known");
            policy.validation = None;
        }
    }
    Resource::BackendTlsPolicy(policy)
}

fn targets(at: At<'_>) -> Option<Vec<ServiceTarget>> {
    let targets: Vec<Option<ServiceTarget>> = at.items().map(target).collect();
    if targets.is_empty() {
        at.error("must name at least one Service");
        return None;
    }
    targets.into_iter().collect()
}

fn target(at: At<'_>) -> Option<ServiceTarget> {
    let fields = at.fields(&["group", "kind", "name", "sectionName"])?;
    let group = fields.get("group").map_or(Some(""), At::str)?;
    let kind = fields.require("kind")?;
    if !matches!(group, "" | "core") || kind.str()? != "Service" {
        kind.error("a BackendTLSPolicy is for Services of its own namespace");
        return None;
    }
    let section = match fields.get("sectionName") {
        Some(at) => Some(at.text()?),
        None => None,
    };
    Some(ServiceTarget { service: fields.require("name")?.text()?, section, line: at.line() })
}

fn validation(at: At<'_>) -> Option<Validation> {
    let fields =
        at.fields(&["caCertificateRefs", "wellKnownCACertificates", "hostname", "subjectAltNames"])?;
    let hostname = fields.require("hostname").and_then(hostname);
    let names: Option<Vec<ServerId>> =
        fields.get("subjectAltNames").map_or(Some(Vec::new()), |at| at.items().map(name).collect());
    let roots = match (fields.get("caCertificateRefs"), fields.get("wellKnownCACertificates")) {
        (Some(refs), None) => config_maps(refs),
        (None, Some(at)) => at.one_of(&[("System", ())]).map(|()| Roots::System(at.line())),
        (Some(_), Some(at)) => {
            at.error("either this or caCertificateRefs, not both");
            None
        }
        (None, None) => {
            fields.missing("caCertificateRefs", "is required, or wellKnownCACertificates: System");
            None
        }
    };
    Some(Validation { hostname: hostname?, names: names?, roots: roots? })
}

/// A name without wildcard, which can be sent as SNI.
fn hostname(at: At<'_>) -> Option<String> {
    let text = at.text()?;
    if !crate::resource::text::is_dns_subdomain(&text) || text.parse::<std::net::IpAddr>().is_ok() {
        at.error(format!("`{text}` is not a DNS name in lower case"));
        return None;
    }
    Some(text)
}

fn name(at: At<'_>) -> Option<ServerId> {
    #[derive(Clone, Copy)]
    enum Kind {
        Hostname,
        Uri,
    }
    let fields = at.fields(&["type", "hostname", "uri"])?;
    let kind = fields.require("type")?.one_of(&[("Hostname", Kind::Hostname), ("URI", Kind::Uri)])?;
    let (wanted, other) = match kind {
        Kind::Hostname => ("hostname", "uri"),
        Kind::Uri => ("uri", "hostname"),
    };
    if let Some(at) = fields.get(other).filter(|at| at.node.as_str() != Some("")) {
        at.error(format!("does not belong to this type, `{wanted}` does"));
        return None;
    }
    let text = fields.require(wanted)?.text()?;
    Some(match kind {
        Kind::Hostname => ServerId::Host(text),
        Kind::Uri => ServerId::Uri(text),
    })
}

fn config_maps(at: At<'_>) -> Option<Roots> {
    let config_map = |at: At<'_>| {
        let fields = at.fields(&["group", "kind", "name"])?;
        let group = fields.get("group").map_or(Some(""), At::str)?;
        let kind = fields.require("kind")?;
        if !matches!(group, "" | "core") || kind.str()? != "ConfigMap" {
            kind.error("only a ConfigMap of the policy's namespace, with the roots under ca.crt");
            return None;
        }
        Some((fields.require("name")?.text()?, at.line()))
    };
    let refs: Option<Vec<_>> = at.items().map(config_map).collect();
    let refs = refs?;
    if refs.is_empty() {
        at.error("must name at least one ConfigMap");
        return None;
    }
    Some(Roots::ConfigMaps(refs))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::only;
    use super::*;

    fn read(spec: &str) -> (bool, BackendTlsPolicy, Vec<String>) {
        let (object, found) = only(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n"
        ));
        let good = object.good;
        match std::sync::Arc::into_inner(object).map(|object| object.resource) {
            Some(Resource::BackendTlsPolicy(policy)) => (good, policy, found),
            other => panic!("{other:?}"),
        }
    }

    const TARGET: &str = "targetRefs: [{group: '', kind: Service, name: a, sectionName: https}]";
    const ROOTS: &str = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";

    #[test]
    fn all_fields() {
        let (good, policy, found) = read(&format!(
            "{{{TARGET}, validation: {{hostname: a.example.com, {ROOTS}, subjectAltNames: [{{type: Hostname, hostname: b}}, {{type: URI, uri: 'spiffe://x/y'}}]}}}}"
        ));
        assert!(good, "{found:?}");
        let target = &policy.targets.unwrap()[0];
        assert_eq!((target.service.as_str(), target.section.as_deref()), ("a", Some("https")));
        let validation = policy.validation.unwrap();
        assert_eq!(validation.names, [ServerId::Host("b".into()), ServerId::Uri("spiffe://x/y".into())]);
        assert!(matches!(&validation.roots, Roots::ConfigMaps(maps) if maps[0].0 == "ca"));
        let (good, policy, _) =
            read(&format!("{{{TARGET}, validation: {{hostname: a, wellKnownCACertificates: System}}}}"));
        assert!(good && matches!(policy.validation.unwrap().roots, Roots::System(_)));
    }

    #[test]
    fn what_is_not_understood_is_no_validation() {
        for (validation, wanted) in [
            ("{hostname: a}", "caCertificateRefs"),
            (&*format!("{{{ROOTS}}}"), "hostname"),
            (&*format!("{{hostname: '*.a', {ROOTS}}}"), "not a DNS name"),
            (&*format!("{{hostname: 10.0.0.1, {ROOTS}}}"), "not a DNS name"),
            (&*format!("{{hostname: a, {ROOTS}, wellKnownCACertificates: System}}"), "not both"),
            ("{hostname: a, caCertificateRefs: []}", "at least one"),
            ("{hostname: a, caCertificateRefs: [{kind: Secret, name: a}]}", "ConfigMap"),
            ("{hostname: a, wellKnownCACertificates: Mozilla}", "System"),
            (
                &*format!("{{hostname: a, {ROOTS}, subjectAltNames: [{{type: URI, hostname: b}}]}}"),
                "hostname",
            ),
            (&*format!("{{hostname: a, {ROOTS}, subjectAltNames: [{{type: DNS, hostname: b}}]}}"), "type"),
        ] {
            let (good, policy, found) = read(&format!("{{{TARGET}, validation: {validation}}}"));
            assert!(!good && policy.validation.is_none(), "{validation}");
            assert!(policy.targets.is_some(), "{validation}");
            assert!(found.join("\n").contains(wanted), "{validation}: {found:?}");
        }
        let (good, policy, _) =
            read(&format!("{{targetRefs: [{{kind: Pod, name: a}}], validation: {{hostname: a, {ROOTS}}}}}"));
        assert!(!good && policy.targets.is_none());
    }
}
