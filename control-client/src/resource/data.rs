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
    values: BTreeMap<String, String>,
}

impl Data {
    /// The value of the first of these keys that is there.
    pub(crate) fn first(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.values.get(*key)).map(String::as_str)
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
            Some(Ok(bytes)) => data.values.extend(text_of(bytes).map(|text| (key.to_owned(), text))),
            Some(Err(_)) => at.error("not base64; write it under stringData to leave it as it is"),
            None => {}
        }
    }
    data.values.extend(texts(object, "stringData"));
    Resource::Secret(bounded(object, data))
}

/// Reads a ConfigMap. `binaryData` is of no use here.
pub(crate) fn config_map(_: &Meta, object: Fields<'_>) -> Resource {
    let data = Data { values: texts(object, "data").collect() };
    Resource::ConfigMap(bounded(object, data))
}

fn bounded(object: Fields<'_>, data: Data) -> Data {
    if data.values.values().map(String::len).sum::<usize>() > MAX_BYTES {
        object.at().error("holds more than 1 MiB");
        return Data::default();
    }
    data
}

fn text_of(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()
}

fn texts<'a>(object: Fields<'a>, name: &str) -> impl Iterator<Item = (String, String)> + use<'a> {
    entries(object, name).filter_map(|(key, at)| Some((key.to_owned(), at.str()?.to_owned())))
}

fn entries<'a>(object: Fields<'a>, name: &str) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
    object.get(name).into_iter().flat_map(At::entries)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(data.first(&["cert", "tls.crt"]), Some("hello"));
        assert_eq!(data.first(&["tls.key"]), Some("secret"));
        assert_eq!(data.first(&["raw"]), None, "not text");
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
        assert_eq!((good, data.first(&["ca.crt"])), (true, Some("pem")));
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let large = "x".repeat(MAX_BYTES + 1);
        let (good, data, _) =
            read(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: s}}\ndata: {{a: {large}}}\n"));
        assert_eq!((good, data.first(&["a"])), (false, None));
    }
}
