//! Kubernetes' kinds that carry files: Secret and ConfigMap.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::read::{At, Fields};
use super::{Meta, Resource};

/// Values kept of one object: Kubernetes takes no more (1 MiB).
const MAX_BYTES: usize = 1 << 20;

/// The text values of a v1 Secret or ConfigMap, by key. Never shown: half of them are keys.
#[derive(Default)]
pub(crate) struct Data {
    values: BTreeMap<String, Text>,
}

/// A value, and where it is written.
pub(crate) struct Text {
    pub(crate) text: String,
    /// `data[tls.crt]`, as diagnostics have it.
    pub(crate) field: String,
    pub(crate) line: u32,
}

impl Data {
    /// The value of the first of these keys that is there.
    pub(crate) fn first(&self, keys: &[&str]) -> Option<&Text> {
        keys.iter().find_map(|key| self.values.get(*key))
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// Reads a Secret: `data` in base64, `stringData` as it is. What is not text is of no use here and left out.
pub(crate) fn secret(_: &Meta, object: Fields<'_>) -> Resource {
    let mut data = Data::default();
    for (key, at) in entries(object, "data") {
        match at.str().map(|text| STANDARD.decode(text.split_ascii_whitespace().collect::<String>())) {
            Some(Ok(bytes)) => data.values.extend(text_of(bytes).map(|text| Text::at("data", key, at, text))),
            Some(Err(_)) => at.error("not base64; write it under stringData to leave it as it is"),
            None => {}
        }
    }
    data.values.extend(texts(object, "stringData"));
    Resource::Secret(bounded(object, data))
}

/// Reads a ConfigMap. `binaryData` is of no use here.
pub(crate) fn config_map(meta: &Meta, object: Fields<'_>) -> Resource {
    if meta.name == REVOCATION_LISTS {
        check_revocation_lists(object);
    }
    let data = Data { values: texts(object, "data").collect() };
    Resource::ConfigMap(bounded(object, data))
}

/// Name of the ConfigMap that has the revocation lists of the mesh's authority, and its key: istiod writes it to every
/// namespace, with nothing in it where there are no lists (istio `pilot/pkg/serviceregistry/kube/controller/namespacecontroller.go`).
pub(crate) const REVOCATION_LISTS: &str = "istio-ca-crl";
pub(crate) const REVOCATION_LISTS_KEY: &str = "ca-crl.pem";

/// Lists of which one can't be used are refused whole: then who is on it is not known.
fn check_revocation_lists(object: Fields<'_>) {
    let Some(at) =
        object.require("data").and_then(At::open_fields).and_then(|data| data.require(REVOCATION_LISTS_KEY))
    else {
        return;
    };
    if let Some(text) = at.str().filter(|text| !text.trim().is_empty())
        && let Err(why) = fips::revocation::lists_in(text.as_bytes())
    {
        at.error(why);
    }
}

fn bounded(object: Fields<'_>, data: Data) -> Data {
    if data.values.values().map(|value| value.text.len()).sum::<usize>() > MAX_BYTES {
        object.at().error("holds more than 1 MiB");
        return Data::default();
    }
    data
}

fn text_of(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()
}

fn texts<'a>(object: Fields<'a>, name: &'static str) -> impl Iterator<Item = (String, Text)> + use<'a> {
    entries(object, name).filter_map(move |(key, at)| Some(Text::at(name, key, at, at.str()?.to_owned())))
}

impl Text {
    fn at(of: &str, key: &str, at: At<'_>, text: String) -> (String, Self) {
        let field = if key.contains('.') { format!("{of}[{key}]") } else { format!("{of}.{key}") };
        (key.to_owned(), Self { text, field, line: at.line() })
    }
}

fn entries<'a>(object: Fields<'a>, name: &str) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
    object.get(name).into_iter().flat_map(At::entries)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::tests::only;
    use super::*;

    fn read(text: &str) -> (bool, Data, Vec<String>) {
        let (object, found) = only(text);
        let good = object.good;
        match std::sync::Arc::into_inner(object).map(|object| object.resource) {
            Some(Resource::Secret(data) | Resource::ConfigMap(data)) => (good, data, found),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_decoded_and_never_shown() {
        let (good, data, found) = read(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata: {tls.crt: 'aGVs\n  bG8=', raw: //8=}\nstringData: {tls.key: secret}\n",
        );
        assert!(good, "{found:?}");
        let first = |keys: &[&str]| data.first(keys).map(|value| value.text.as_str());
        assert_eq!(first(&["cert", "tls.crt"]), Some("hello"));
        assert_eq!(first(&["tls.key"]), Some("secret"));
        assert_eq!(first(&["raw"]), None, "not text");
        let certificate = data.first(&["tls.crt"]).unwrap();
        assert_eq!((certificate.field.as_str(), certificate.line), ("data[tls.crt]", 5));
        assert_eq!(format!("{data:?}"), r#"{"tls.crt", "tls.key"}"#);
    }

    #[test]
    fn mistakes_have_their_place() {
        let (good, _, found) =
            read("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: '%'\n  b: 1\n");
        assert!(!good);
        assert!(found[0].starts_with("5 data.a: not base64"), "{found:?}");
        assert_eq!(found.len(), 2);
        let (good, data, _) =
            read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {ca.crt: pem}\n");
        assert_eq!((good, data.first(&["ca.crt"]).map(|value| &*value.text)), (true, Some("pem")));
    }

    #[test]
    fn revocation_lists_are_read_here() {
        let authority = fips::ca::Authority::generate("cluster.local", Duration::from_secs(60)).unwrap();
        let list = authority.revocation_list(&[], SystemTime::now()).unwrap();
        let with = |text: &str| {
            let text = text.replace('\n', "\n    ");
            read(&format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio-ca-crl}}\ndata:\n  ca-crl.pem: |\n    {text}\n"
            ))
        };
        for good in ["", &list, &format!("{list}{list}")] {
            let (good, data, found) = with(good);
            assert!(good && data.first(&[REVOCATION_LISTS_KEY]).is_some(), "{found:?}");
        }
        let (good, _, found) = with(&format!("{list}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"));
        assert!(!good);
        assert!(found[0].starts_with("5 data[ca-crl.pem]: list 2: "), "{found:?}");
        let (good, _, found) = with("not a list");
        assert!(!good && found[0].contains("no revocation list in it"), "{found:?}");
        let (good, _, found) =
            read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-crl}\ndata: {crl: x}\n");
        assert!(!good && found[0].contains("data.ca-crl.pem: is required"), "{found:?}");
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let large = "x".repeat(MAX_BYTES + 1);
        let (good, data, _) =
            read(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: s}}\ndata: {{a: {large}}}\n"));
        assert!(!good && data.first(&["a"]).is_none());
    }
}
