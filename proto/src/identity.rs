//! A node's Ed25519 key: made, kept in a file that only its owner may read, and shown as a self-signed
//! certificate. The node id is the raw public key, so nobody can claim another's id.
//!
//! Besides the seams this is the one file of the crate that touches the file system.

use hayloft_common::id::NodeId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why there is no usable node key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("node key file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "node key file {} may be read by others (mode {mode:o}): run `chmod 600` on it, and make a new \
         key if it may have been read",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("node key: {0}: expected an Ed25519 key in PKCS#8 PEM form")]
    Key(#[from] rcgen::Error),
    #[error("node key: not an Ed25519 key")]
    NotEd25519,
}

/// A node's key and the certificate that shows it.
pub struct Identity {
    id: NodeId,
    key: rcgen::KeyPair,
    certificate: CertificateDer<'static>,
}

impl Identity {
    /// A new random identity.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_key(rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?)
    }

    /// Reads the PKCS#8 PEM form.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        Self::from_key(rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ED25519)?)
    }

    fn from_key(key: rcgen::KeyPair) -> Result<Self, IdentityError> {
        let id = NodeId::try_from(key.public_key_raw()).map_err(|_| IdentityError::NotEd25519)?;
        let params = rcgen::CertificateParams::new(vec![TLS_NAME.to_owned()])?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { id, key, certificate })
    }

    /// The secret key in PKCS#8 PEM form.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Reads the key file, refusing one that others may read. Blocks on file I/O.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let file = |source| IdentityError::File { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        Self::from_pem(&fs::read_to_string(path).map_err(file)?)
    }

    /// Writes the key file (mode 0600), whole or not at all also if the power goes; an existing file is
    /// replaced. Blocks on file I/O.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let write = || -> io::Result<()> {
            let draft = path.with_extension("new");
            // A draft left by a crash may have another mode: start afresh.
            if let Err(e) = fs::remove_file(&draft)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(e);
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(self.to_pem().as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, path)?;
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::OpenOptions::new().read(true).open(folder)?.sync_all()
        };
        write().map_err(|source| IdentityError::File { path: path.to_owned(), source })
    }

    /// Reads the key file, or makes a key and writes it if there is no file. Blocks on file I/O.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate()?;
                identity.save(path)?;
                Ok(identity)
            }
            other => other,
        }
    }

    /// The public key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

/// The name in every certificate; it means nothing, peers are known by key.
pub(crate) const TLS_NAME: &str = "hayloft";

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_key_gives_the_same_id_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node_key.pem");
        let made = Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(&path).unwrap().id(), made.id());
        assert_ne!(Identity::generate().unwrap().id(), made.id());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_exposed_or_damaged_key_file_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node_key.pem");
        Identity::generate().unwrap().save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Key(_))));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let identity = Identity::generate().unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity {{ id: {}, .. }}", identity.id().short()));
    }
}
