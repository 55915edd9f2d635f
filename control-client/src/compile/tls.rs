//! TLS to backends outside of the mesh, with the Secrets and ConfigMaps that DestinationRules and BackendTLSPolicies name.

use std::collections::HashMap;
use std::sync::Arc;

use super::Findings;
use super::catalog::{Catalog, Item};
use crate::resource::Object;
use crate::resource::data::Data;
use crate::resource::destination::{TlsMode, TlsSettings};
use crate::resource::gateway_api::{BackendTlsPolicy, Roots};
use crate::resource::mesh::MeshSettings;
use crate::snapshot::{BackendTls, Pem, PemObject, ServerId, TlsOrigination};

/// What keys and roots there are.
#[derive(Debug)]
pub(super) struct Materials<'a> {
    secrets: HashMap<(&'a str, &'a str), &'a Data>,
    config_maps: HashMap<(&'a str, &'a str), &'a Data>,
    /// MeshSettings `systemRoots`.
    system_roots: Option<String>,
    client_namespace: String,
}

/// Certificate, key and roots of a `credentialName`.
#[derive(Default)]
struct Credential {
    client: Option<(Pem, Pem)>,
    roots: Option<Pem>,
}

impl<'a> Materials<'a> {
    pub(super) fn new(catalog: &Catalog<'a>, client_namespace: &str, settings: &MeshSettings) -> Self {
        let by_name = |items: &[Item<'a, Data>]| {
            items
                .iter()
                .map(|item| ((&*item.object.meta.namespace, &*item.object.meta.name), item.spec))
                .collect()
        };
        Self {
            secrets: by_name(&catalog.secrets),
            config_maps: by_name(&catalog.config_maps),
            system_roots: settings.system_roots.clone(),
            client_namespace: client_namespace.to_owned(),
        }
    }

    /// What a DestinationRule orders for a host. `entry_names`: `subjectAltNames` of its ServiceEntry, which count where
    /// the rule has none.
    pub(super) fn of_rule(
        &self,
        tls: &TlsSettings,
        object: &Object,
        host: &str,
        entry_names: &[String],
        findings: &mut Findings,
    ) -> BackendTls {
        let names = if tls.sans.is_empty() { entry_names } else { &tls.sans };
        match tls.mode {
            TlsMode::Disable => BackendTls::Plaintext,
            TlsMode::IstioMutual => BackendTls::Mesh { sans: names.to_vec() },
            TlsMode::Simple | TlsMode::Mutual => {
                let origination = self.origination(tls, host, names);
                origination.unwrap_or_else(|why| unusable(object, &tls.field, tls.line, why, findings))
            }
        }
    }

    fn origination(&self, tls: &TlsSettings, host: &str, names: &[String]) -> Result<BackendTls, String> {
        let sni = tls.sni.clone().or_else(|| (!host.starts_with('*')).then(|| host.to_owned()));
        let mut names: Vec<ServerId> = names.iter().map(|name| ServerId::of_any_kind(name)).collect();
        if names.is_empty() {
            let sni = sni
                .clone()
                .ok_or("needs sni or subjectAltNames: nothing else says which server to expect")?;
            names.push(ServerId::Host(sni));
        }
        let credential = match &tls.credential {
            Some(name) => self.credential(name, tls.mode)?,
            None => Credential::default(),
        };
        let roots = match (credential.roots, &tls.ca_file) {
            (Some(roots), _) => roots,
            (None, Some(path)) => Pem::File(path.clone()),
            (None, None) => self.system_roots("caCertificates")?,
        };
        let files = tls.client_files.as_ref();
        let files = files.map(|(certificate, key)| (Pem::File(certificate.clone()), Pem::File(key.clone())));
        let client = credential.client.or(files);
        Ok(BackendTls::Tls(Arc::new(TlsOrigination { sni, names, roots: vec![roots], client })))
    }

    /// Keys as Istio names them: `tls.crt`, `tls.key`, `ca.crt`, or `cert`, `key`, `cacert`; roots may lie in a Secret
    /// `NAME-cacert` of their own. Always of the client's namespace: what is in others is not this workload's.
    fn credential(&self, name: &str, mode: TlsMode) -> Result<Credential, String> {
        let namespace = self.client_namespace.as_str();
        let of_roots = format!("{name}-cacert");
        let (own, of_roots) =
            (self.secrets.get(&(namespace, name)), self.secrets.get(&(namespace, of_roots.as_str())));
        if own.is_none() && (of_roots.is_none() || mode == TlsMode::Mutual) {
            return Err(format!("no Secret {namespace}/{name}"));
        }
        let pem = |what: &str, text: &str| {
            Pem::Object(PemObject::new(format!("{what} of Secret {namespace}/{name}"), text))
        };
        let places = [own, of_roots].into_iter().flatten();
        let roots = places.filter_map(|data| data.first(&["ca.crt", "cacert"])).next();
        let roots = roots.map(|text| pem("roots", text));
        let client = match mode {
            TlsMode::Mutual => {
                let value = |keys: &[&str]| {
                    let found = own.and_then(|data| data.first(keys));
                    found.ok_or_else(|| format!("Secret {namespace}/{name} has no {}", keys.join(" or ")))
                };
                let certificate = pem("certificate", value(&["tls.crt", "cert"])?);
                Some((certificate, pem("key", value(&["tls.key", "key"])?)))
            }
            _ => None,
        };
        Ok(Credential { client, roots })
    }

    fn system_roots(&self, instead: &str) -> Result<Pem, String> {
        let roots = self.system_roots.clone().map(Pem::File);
        roots.ok_or_else(|| {
            format!(
                "no {instead}, and no MeshSettings spec.systemRoots says in which file the system's roots are (Writ \
                 carries none); no server can be verified, so nothing is sent"
            )
        })
    }

    /// What a BackendTLSPolicy orders.
    pub(super) fn of_policy(&self, item: &Item<'_, BackendTlsPolicy>, findings: &mut Findings) -> BackendTls {
        let meta = &item.object.meta;
        let Some(validation) = item.spec.validation.as_ref().filter(|_| !item.quarantined) else {
            let why = format!("BackendTLSPolicy {}/{} can't be understood", meta.namespace, meta.name);
            return BackendTls::Unusable { why };
        };
        let roots = match &validation.roots {
            Roots::System(line) => match self.system_roots("caCertificateRefs") {
                Ok(roots) => vec![roots],
                Err(why) => {
                    let field = "spec.validation.wellKnownCACertificates";
                    return unusable(item.object, field, *line, why, findings);
                }
            },
            Roots::ConfigMaps(refs) => refs
                .iter()
                .enumerate()
                .filter_map(|(index, (name, line))| match self.roots_of(&meta.namespace, name) {
                    Ok(pem) => Some(pem),
                    Err(why) => {
                        let field = format!("spec.validation.caCertificateRefs[{index}]");
                        findings.error_once(item.object, &field, *line, why);
                        None
                    }
                })
                .collect(),
        };
        if roots.is_empty() {
            let why = format!("BackendTLSPolicy {}/{} has no usable roots", meta.namespace, meta.name);
            return BackendTls::Unusable { why };
        }
        let names = match validation.names.as_slice() {
            [] => vec![ServerId::Host(validation.hostname.clone())],
            names => names.to_vec(),
        };
        let sni = Some(validation.hostname.clone());
        BackendTls::Tls(Arc::new(TlsOrigination { sni, names, roots, client: None }))
    }

    fn roots_of(&self, namespace: &str, name: &str) -> Result<Pem, String> {
        let data = self.config_maps.get(&(namespace, name));
        let data = data.ok_or_else(|| format!("no ConfigMap {namespace}/{name}"))?;
        match data.first(&["ca.crt"]) {
            Some(text) if text.contains("-----BEGIN CERTIFICATE-----") => {
                Ok(Pem::Object(PemObject::new(format!("ConfigMap {namespace}/{name}"), text)))
            }
            _ => Err(format!("ConfigMap {namespace}/{name} has no certificates in PEM under ca.crt")),
        }
    }
}

fn unusable(object: &Object, field: &str, line: u32, why: String, findings: &mut Findings) -> BackendTls {
    let meta = &object.meta;
    let told = format!("{} {}/{}: {why}", meta.kind, meta.namespace, meta.name);
    findings.error_once(object, field, line, why);
    BackendTls::Unusable { why: told }
}
