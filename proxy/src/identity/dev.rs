//! A throw-away authority in a directory, for machines without one: its root is shared by all who name the directory, its
//! leaves stay in memory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use fips::ca::{Authority, Profile};

use super::files::read_file;
use super::set::Pem;
use super::{IdentityError, SpiffeId};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const LOCK: &str = ".lock";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a leaf is valid. It is made again at about half of this.
pub(super) const LEAF_LIFETIME: Duration = Duration::from_secs(86_400);

/// The authority of `dir`; the first to ask makes it.
pub fn authority(dir: &Path, trust_domain: &str) -> Result<Authority, IdentityError> {
    let failed = |error| IdentityError::Read { path: dir.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let lock =
        OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOCK)).map_err(failed)?;
    // Held until `lock` is dropped.
    lock.lock().map_err(failed)?;
    // The certificate is written last: where it is, the key is.
    if dir.join(CERTIFICATE).exists() {
        return read(dir, trust_domain);
    }
    let authority = Authority::generate(trust_domain, ROOT_LIFETIME)?;
    write(dir, KEY, &authority.key_pem()).map_err(failed)?;
    write(dir, CERTIFICATE, authority.certificate_pem()).map_err(failed)?;
    tracing::warn!(dir = %dir.display(), trust_domain, "made a throw-away authority: for development only");
    Ok(authority)
}

/// A leaf for `own`, with a new key.
pub(super) fn leaf(authority: &Authority, own: &SpiffeId) -> Result<Pem, IdentityError> {
    let issued = authority.issue(&Profile::workload(own.as_str(), LEAF_LIFETIME))?;
    Ok(Pem {
        chain: issued.certificate_pem.into_bytes(),
        key: issued.key_pem.into_bytes().into(),
        bundle: authority.certificate_pem().as_bytes().to_vec(),
        ..Pem::default()
    })
}

/// When a leaf made now is to be made again: at half of its time or up to a tenth earlier, so that what started together
/// does not renew together.
pub(super) fn due(now: SystemTime) -> SystemTime {
    now + LEAF_LIFETIME.mul_f64(0.5 - 0.1 * rand::random::<f64>())
}

fn read(dir: &Path, trust_domain: &str) -> Result<Authority, IdentityError> {
    let text = |name: &str| {
        String::from_utf8(read_file(dir.join(name))?)
            .map_err(|error| IdentityError::Read { path: dir.join(name), error: io::Error::other(error) })
    };
    Ok(Authority::from_pem(trust_domain, &text(CERTIFICATE)?, &text(KEY)?)?)
}

/// Whole or not at all, and readable by the owner only.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
