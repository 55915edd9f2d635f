//! TLS to backends outside of the mesh, with the Secrets and ConfigMaps that DestinationRules and BackendTLSPolicies name;
//! and the Secrets of Gateways.

use std::collections::HashMap;
use std::sync::Arc;

use fips::NotApproved;

use super::Findings;
use super::catalog::{Catalog, Item};
use crate::resource::Object;
use crate::resource::data::{Data, Text};
use crate::resource::destination::{TlsMode, TlsSettings};
use crate::resource::gateway_api::{BackendTlsPolicy, Roots};
use crate::resource::mesh::MeshSettings;
use crate::snapshot::{BackendTls, Pem, PemObject, ServerId, TlsOrigination};

/// What keys and roots there are.
#[derive(Debug)]
pub(super) struct Materials<'a> {
    secrets: HashMap<(&'a str, &'a str), Carrier<'a>>,
    config_maps: HashMap<(&'a str, &'a str), Carrier<'a>>,
    /// MeshSettings `systemRoots`.
    system_roots: Option<String>,
    client_namespace: String,
}

/// A Secret or ConfigMap.
type Carrier<'a> = (&'a Object, &'a Data);

/// Why TLS can't be as it is ordered.
struct Flaw {
    why: String,
    /// What is ordered, or what it names, is not approved where it must be.
    not_approved: bool,
}

impl From<String> for Flaw {
    fn from(why: String) -> Self {
        Self { why, not_approved: false }
    }
}

impl From<&str> for Flaw {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
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
                .map(|item| {
                    let meta = &item.object.meta;
                    ((&*meta.namespace, &*meta.name), (item.object, item.spec))
                })
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
                let origination = self.origination(tls, host, names, findings);
                origination.unwrap_or_else(|flaw| unusable(object, &tls.field, tls.line, flaw, findings))
            }
        }
    }

    fn origination(
        &self,
        tls: &TlsSettings,
        host: &str,
        names: &[String],
        findings: &mut Findings,
    ) -> Result<BackendTls, Flaw> {
        let sni = tls.sni.clone().or_else(|| (!host.starts_with('*')).then(|| host.to_owned()));
        let mut names: Vec<ServerId> = names.iter().map(|name| ServerId::of_any_kind(name)).collect();
        if names.is_empty() {
            let sni = sni
                .clone()
                .ok_or("needs sni or subjectAltNames: nothing else says which server to expect")?;
            names.push(ServerId::Host(sni));
        }
        let credential = match &tls.credential {
            Some(name) => self.credential(name, tls.mode, findings)?,
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
    fn credential(&self, name: &str, mode: TlsMode, findings: &mut Findings) -> Result<Credential, Flaw> {
        let namespace = self.client_namespace.as_str();
        let of_roots = format!("{name}-cacert");
        let (own, of_roots) =
            (self.secrets.get(&(namespace, name)), self.secrets.get(&(namespace, of_roots.as_str())));
        if own.is_none() && (of_roots.is_none() || mode == TlsMode::Mutual) {
            return Err(format!("no Secret {namespace}/{name}").into());
        }
        let pem = |what: &str, text: &Text| {
            Pem::Object(PemObject::new(format!("{what} of Secret {namespace}/{name}"), &text.text))
        };
        let places = [own, of_roots].into_iter().flatten();
        let roots = places.filter_map(|(of, data)| Some((of, data.first(&["ca.crt", "cacert"])?))).next();
        let roots = match roots {
            Some((of, text)) => {
                approved(of, text, fips::approve::roots_in, findings)?;
                Some(pem("roots", text))
            }
            None => None,
        };
        let client = match (mode, own) {
            (TlsMode::Mutual, Some((of, data))) => {
                let value = |keys: &[&str]| {
                    let found = data.first(keys);
                    found.ok_or_else(|| format!("Secret {namespace}/{name} has no {}", keys.join(" or ")))
                };
                let (certificate, key) = (value(&["tls.crt", "cert"])?, value(&["tls.key", "key"])?);
                approved(of, certificate, fips::approve::chain_in, findings)?;
                approved(of, key, fips::approve::key_in, findings)?;
                Some((pem("certificate", certificate), pem("key", key)))
            }
            _ => None,
        };
        Ok(Credential { client, roots })
    }

    /// How a Secret's certificate and key are called.
    pub(super) fn pair_names(namespace: &str, name: &str) -> (String, String) {
        let of = |what: &str| format!("{what} of Secret {namespace}/{name}");
        (of("certificate"), of("key"))
    }

    /// The certificate of a Secret of type `kubernetes.io/tls`, and its key.
    pub(super) fn pair(
        &self,
        namespace: &str,
        name: &str,
        findings: &mut Findings,
    ) -> Result<(PemObject, PemObject), String> {
        let found = self.secrets.get(&(namespace, name));
        let (of, data) = found.ok_or_else(|| format!("no Secret {namespace}/{name}"))?;
        let value =
            |key: &str| data.first(&[key]).ok_or_else(|| format!("Secret {namespace}/{name} has no {key}"));
        let (certificate, key) = (value("tls.crt")?, value("tls.key")?);
        approved(of, certificate, fips::approve::chain_in, findings).map_err(|flaw| flaw.why)?;
        approved(of, key, fips::approve::key_in, findings).map_err(|flaw| flaw.why)?;
        fips::read_pair(&certificate.text, &key.text)
            .map_err(|why| format!("Secret {namespace}/{name}: {why}"))?;
        let names = Self::pair_names(namespace, name);
        Ok((PemObject::new(names.0, &certificate.text), PemObject::new(names.1, &key.text)))
    }

    fn system_roots(&self, instead: &str) -> Result<Pem, Flaw> {
        let roots = self.system_roots.clone().map(Pem::File);
        roots.ok_or_else(|| {
            format!(
                "no {instead}, and no MeshSettings spec.systemRoots says in which file the system's roots are (Writ \
                 carries none); no server can be verified, so nothing is sent"
            )
            .into()
        })
    }

    /// What a BackendTLSPolicy orders.
    pub(super) fn of_policy(&self, item: &Item<'_, BackendTlsPolicy>, findings: &mut Findings) -> BackendTls {
        let meta = &item.object.meta;
        let Some(validation) = item.spec.validation.as_ref().filter(|_| !item.quarantined) else {
            let why = format!("BackendTLSPolicy {}/{} can't be understood", meta.namespace, meta.name);
            return BackendTls::Unusable { why, not_approved: false };
        };
        let mut not_approved = false;
        let roots = match &validation.roots {
            Roots::System(line) => match self.system_roots("caCertificateRefs") {
                Ok(roots) => vec![roots],
                Err(flaw) => {
                    let field = "spec.validation.wellKnownCACertificates";
                    return unusable(item.object, field, *line, flaw, findings);
                }
            },
            Roots::ConfigMaps(refs) => refs
                .iter()
                .enumerate()
                .filter_map(|(index, (name, line))| {
                    let found = self.roots_of(&meta.namespace, name, findings);
                    let flaw = match found {
                        Ok(pem) => return Some(pem),
                        Err(flaw) => flaw,
                    };
                    not_approved |= flaw.not_approved;
                    let field = format!("spec.validation.caCertificateRefs[{index}]");
                    findings.error_once(item.object, &field, *line, flaw.why);
                    None
                })
                .collect(),
        };
        if roots.is_empty() {
            let why = format!("BackendTLSPolicy {}/{} has no usable roots", meta.namespace, meta.name);
            return BackendTls::Unusable { why, not_approved };
        }
        let names = match validation.names.as_slice() {
            [] => vec![ServerId::Host(validation.hostname.clone())],
            names => names.to_vec(),
        };
        let sni = Some(validation.hostname.clone());
        BackendTls::Tls(Arc::new(TlsOrigination { sni, names, roots, client: None }))
    }

    fn roots_of(&self, namespace: &str, name: &str, findings: &mut Findings) -> Result<Pem, Flaw> {
        let found = self.config_maps.get(&(namespace, name));
        let (of, data) = found.ok_or_else(|| format!("no ConfigMap {namespace}/{name}"))?;
        match data.first(&["ca.crt"]) {
            Some(value) if value.text.contains("-----BEGIN CERTIFICATE-----") => {
                approved(of, value, fips::approve::roots_in, findings)?;
                Ok(Pem::Object(PemObject::new(format!("ConfigMap {namespace}/{name}"), &value.text)))
            }
            _ => Err(format!("ConfigMap {namespace}/{name} has no certificates in PEM under ca.crt").into()),
        }
    }
}

/// What a Secret or ConfigMap carries must be approved where that is required: it is told of there, and of what names it.
fn approved(
    of: &Object,
    value: &Text,
    check: fn(&str) -> Result<(), NotApproved>,
    findings: &mut Findings,
) -> Result<(), Flaw> {
    check(&value.text).map_err(|error| {
        let meta = &of.meta;
        let why = format!("{} of {} {}/{}: {error}", value.field, meta.kind, meta.namespace, meta.name);
        findings.quarantined_once(of, &value.field, value.line, error.to_string());
        Flaw { why, not_approved: true }
    })
}

fn unusable(object: &Object, field: &str, line: u32, flaw: Flaw, findings: &mut Findings) -> BackendTls {
    let meta = &object.meta;
    let told = format!("{} {}/{}: {}", meta.kind, meta.namespace, meta.name, flaw.why);
    findings.error_once(object, field, line, flaw.why);
    BackendTls::Unusable { why: told, not_approved: flaw.not_approved }
}
