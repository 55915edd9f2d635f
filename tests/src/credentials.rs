//! A certificate, its key and roots in a directory that a proxy follows, replaced as Kubernetes replaces them: all at once.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

use fips::ca::Issued;

use crate::Directory;

/// What a proxy has for an identity, as files.
#[derive(Debug)]
pub struct Credentials {
    directory: Directory,
    id: String,
    /// Contents by name, and how often they were replaced.
    present: Mutex<(BTreeMap<String, String>, u64)>,
}

impl Credentials {
    pub(crate) fn new(id: String) -> Self {
        Self { directory: Directory::new(), id, present: Mutex::default() }
    }

    /// Where a proxy finds it.
    pub fn source(&self) -> proxy::identity::Source {
        proxy::identity::Source::Files(self.directory.path().to_owned())
    }

    /// The identity that it proves.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces certificate, key and roots.
    pub fn renew(&self, issued: &Issued, roots: &str) {
        self.put(&[("tls.crt", &issued.certificate_pem), ("tls.key", &issued.key_pem), ("ca.crt", roots)]);
    }

    /// Replaces some files, and keeps the others.
    pub fn put(&self, files: &[(&str, &str)]) {
        let (contents, version) = &mut *self.present.lock().unwrap();
        for (name, text) in files {
            contents.insert((*name).to_owned(), (*text).to_owned());
        }
        *version += 1;
        let root = self.directory.path();
        let (new, old) = (format!("..{version}"), format!("..{}", *version - 1));
        std::fs::create_dir(root.join(&new)).unwrap();
        for (name, text) in contents.iter() {
            std::fs::write(root.join(&new).join(name), text).unwrap();
        }
        symlink(&new, root.join("..new")).unwrap();
        std::fs::rename(root.join("..new"), root.join("..data")).unwrap();
        for name in contents.keys() {
            if !root.join(name).exists() {
                symlink(format!("..data/{name}"), root.join(name)).unwrap();
            }
        }
        let _ = std::fs::remove_dir_all(root.join(old));
    }
}
