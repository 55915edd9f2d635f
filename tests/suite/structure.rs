//! What must never be: read from the `use` lines and paths of the sources, the lock file and the lints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules of the proxy from the top down: each names only those of the lines after its own.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["app"],
    &["candidate", "threads"],
    &["admin", "reload", "explain", "listen"],
    &["conn"],
    &["http", "tcp"],
    &["tunnel", "consult", "limit"],
    &["stages"],
    &["worker"],
    &["live"],
    &["peer", "upstream", "jwt"],
    &["generation", "io", "memory", "roles", "sample", "tls"],
    &["telemetry", "tables", "limits"],
    &["jwks"],
    &["body", "edits", "error", "h1", "identity", "net", "drain"],
    &["clock", "decision"],
];

#[test]
fn modules_name_only_those_below_them() {
    let layer = |module: &str| {
        let found = LAYERS.iter().position(|layer| layer.contains(&module));
        found.unwrap_or_else(|| panic!("{module} has no layer: give it one in LAYERS"))
    };
    let mut wrong = BTreeSet::new();
    for source in Source::all("proxy/src") {
        for named in source.crate_modules() {
            let module = source.module();
            if named != module && layer(&named) <= layer(&module) {
                wrong.insert(format!("{}: {module} names {named}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_ground_floor_and_the_control_client_know_no_proxy() {
    for root in ["fips/src", "control-client/src"] {
        assert_none(root, |source| source.names(&["proxy::"]));
    }
    assert_none("fips/src", |source| source.names(&["control_client::"]));
    for manifest in ["fips/Cargo.toml", "control-client/Cargo.toml"] {
        let text = std::fs::read_to_string(root().join(manifest)).unwrap();
        let dependencies = text.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        assert!(!dependencies.contains("proxy"), "{manifest}");
    }
}

#[test]
fn the_control_client_sees_no_data_path_sockets() {
    assert_none("control-client/src", |source| {
        source.names(&["tokio::net", "std::net::Tcp", "hyper::", "rustls::"])
    });
}

#[test]
fn tables_decisions_and_errors_do_no_io() {
    let pure = |source: &Source| ["tables", "decision", "error"].contains(&source.module().as_str());
    let io =
        ["async fn", "async move", ".await", "tokio::", "std::fs", "std::io", "std::net::Tcp", "std::thread"];
    assert_none("proxy/src", |source| if pure(source) { source.names(&io) } else { None });
}

#[test]
fn tables_hold_ids_and_never_live_things() {
    let live = ["crate::upstream", "crate::limits", "crate::http", "crate::tls"];
    assert_none("proxy/src/tables", |source| source.names(&live));
}

#[test]
fn only_reload_publishes_tables() {
    assert_none("proxy/src", |source| {
        let may = ["reload", "generation"].contains(&source.module().as_str());
        if may { None } else { source.names(&[".publish("]) }
    });
    // Others compile tables to explain them, not to serve by them.
    assert_none("proxy/src", |source| {
        let may = ["reload", "tables"].contains(&source.module().as_str());
        if may { None } else { source.names(&["Tables::compile"]) }
    });
}

#[test]
fn only_the_ground_floor_names_a_crypto_backend() {
    for root in ["control-client/src", "proxy/src"] {
        assert_none(root, |source| {
            source.names(&["aws_lc_rs", "aws_lc_sys", "crypto::ring", "ring::", "openssl::"])
        });
    }
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    // `ring` stands there as an option of rustls that nothing turns on: `cargo deny` looks at what is built.
    for backend in ["openssl", "openssl-sys", "native-tls", "boring", "mbedtls"] {
        assert!(!lock.contains(&format!("name = \"{backend}\"\n")), "{backend} is in the lock file");
    }
}

#[test]
fn http_and_tcp_do_not_know_each_other_and_telemetry_knows_neither() {
    let named = |module: &str, others: &[&str]| {
        assert_none(
            "proxy/src",
            |source| if source.module() == module { source.names(others) } else { None },
        );
    };
    named("http", &["crate::tcp"]);
    named("tcp", &["crate::http"]);
    named("telemetry", &["crate::http", "crate::tcp", "crate::conn"]);
}

#[test]
fn sources_do_not_use_test_helpers() {
    for root in ["fips/src", "control-client/src", "proxy/src"] {
        assert_none(root, |source| {
            source.names(&["tests::", "::testing", "::fixture", "tokio::time::pause"])
        });
    }
}

#[test]
fn unsafe_stays_with_the_sockets() {
    for root in ["fips/src", "control-client/src", "proxy/src"] {
        assert_none(root, |source| {
            if source.module() == "net" {
                None
            } else {
                source.names(&["unsafe {", "unsafe fn", "unsafe impl"])
            }
        });
    }
}

#[test]
fn a_file_says_in_its_first_line_what_it_owns() {
    for root in ["fips/src", "control-client/src", "proxy/src", "tests/src", "tests/suite", "benches/src"] {
        assert_none(
            root,
            |source| {
                if source.raw.starts_with("//! ") { None } else { Some("no first line".into()) }
            },
        );
    }
}

/// A file of sources, without comments and without its tests.
struct Source {
    path: PathBuf,
    raw: String,
    code: String,
}

impl Source {
    /// The sources under a directory of the repository, without files that hold tests only.
    fn all(under: &str) -> Vec<Self> {
        let mut found = Vec::new();
        collect(&root().join(under), &mut found);
        assert!(!found.is_empty(), "{under} has sources");
        found.sort();
        found.into_iter().filter(|path| !is_of_tests(path)).map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let raw = std::fs::read_to_string(&path).unwrap();
        let before_tests = raw.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = before_tests.lines().map(without_comment).collect::<Vec<_>>().join("\n");
        Self { path, raw, code }
    }

    /// Its module directly under `src`.
    fn module(&self) -> String {
        let mut parts = self.path.components().skip_while(|part| part.as_os_str() != "src").skip(1);
        let first = parts.next().expect("a file under src").as_os_str().to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    /// The modules of its own crate that it names.
    fn crate_modules(&self) -> BTreeSet<String> {
        let mut named = BTreeSet::new();
        for (at, _) in self.code.match_indices("crate::") {
            let rest = &self.code[at + "crate::".len()..];
            match rest.strip_prefix('{') {
                None => named.extend(word(rest)),
                // Words at the first level of the braces.
                Some(list) => {
                    let mut depth = 0;
                    for part in list.split_inclusive(['{', '}', ',']) {
                        if depth == 0 {
                            named.extend(word(part.trim_start()));
                        }
                        depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                        if depth < 0 {
                            break;
                        }
                    }
                }
            }
        }
        // What is not a module is an item of the crate's root or a macro.
        named.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
        named
    }

    /// The first of these that the code contains.
    fn names(&self, parts: &[&str]) -> Option<String> {
        parts.iter().find(|part| contains_path(&self.code, part)).map(|part| (*part).to_owned())
    }
}

/// Whether code contains a path or word that does not just end like it (`proxy::` is not in `bookproxy::`).
fn contains_path(code: &str, part: &str) -> bool {
    let starts_word = part.chars().next().is_some_and(|first| first.is_alphanumeric());
    code.match_indices(part).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !starts_word || !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

fn word(text: &str) -> Option<String> {
    let end =
        text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn is_of_tests(path: &Path) -> bool {
    let names: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let under_src = names.iter().rposition(|name| name == "src").unwrap_or_default();
    let tests = ["tests", "tests.rs", "testing.rs", "fixture.rs", "testing", "fixture"];
    names[under_src + 1..].iter().any(|name| tests.contains(&name.as_ref()))
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

#[track_caller]
fn assert_none(under: &str, wrong: impl Fn(&Source) -> Option<String>) {
    let found: BTreeMap<_, _> = Source::all(under)
        .iter()
        .filter_map(|source| Some((source.path.display().to_string(), wrong(source)?)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}
