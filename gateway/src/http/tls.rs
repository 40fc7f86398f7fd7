//! TLS of the HTTP ports: certificate and key from PEM files, read again when they change.
//!
//! A changed pair that can't be used is reported and the old one stays in force: a botched renewal must
//! not take the service down.

use arc_swap::ArcSwap;
use hayloft_common::env::Env;
use hayloft_common::hash::Hash;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no usable PEM {what}: {reason}")]
    Pem { path: PathBuf, what: &'static str, reason: String },
    #[error("certificate {certificate} and key {key} don't make a server: {source}")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("the node is stopping")]
    Stopping,
}

/// Where certificate chain and private key lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The certificate in force.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<ServerConfig>,
    fingerprint: ArcSwap<Hash>,
}

impl Tls {
    /// Reads the files for the first time.
    pub async fn load(env: &Env, files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let (config, fingerprint) = read(env, &files).await?;
        Ok(Arc::new(Self {
            files,
            current: ArcSwap::from_pointee(config),
            fingerprint: ArcSwap::from_pointee(fingerprint),
        }))
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again; true if they had changed and are in force now.
    pub async fn reload(&self, env: &Env) -> Result<bool, TlsError> {
        let (config, fingerprint) = read(env, &self.files).await?;
        if fingerprint == **self.fingerprint.load() {
            return Ok(false);
        }
        self.current.store(Arc::new(config));
        self.fingerprint.store(Arc::new(fingerprint));
        Ok(true)
    }

    /// Looks at the files every `interval` until `stop`.
    pub async fn watch(self: Arc<Self>, env: Env, interval: Duration, stop: CancellationToken) {
        let mut last_error = String::new();
        loop {
            tokio::select! {
                biased; // Stopping goes first; the timer can't starve it.
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            match self.reload(&env).await {
                Ok(true) => {
                    last_error.clear();
                    tracing::info!(certificate = %self.files.certificate.display(), "TLS certificate renewed");
                }
                Ok(false) => last_error.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != last_error {
                        tracing::warn!(error = %text, "keeping the TLS certificate in force: the files can't be used");
                        last_error = text;
                    }
                }
            }
        }
    }
}

async fn read(env: &Env, files: &TlsFiles) -> Result<(ServerConfig, Hash), TlsError> {
    let files = files.clone();
    env.run_blocking(move || {
        let certificate = read_file(&files.certificate)?;
        let key = read_file(&files.key)?;
        let fingerprint = Hash::of(&[Hash::of(&certificate).0, Hash::of(&key).0].concat());
        Ok((configure(&files, &certificate, &key)?, fingerprint))
    })
    .await
    .map_err(|_| TlsError::Stopping)?
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn configure(files: &TlsFiles, certificate: &[u8], key: &[u8]) -> Result<ServerConfig, TlsError> {
    let pem = |path: &Path, what, reason: String| TlsError::Pem { path: path.to_owned(), what, reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|e| pem(&files.certificate, "certificate", e.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|e| pem(&files.key, "private key", e.to_string()))?;
    let pair =
        |source| TlsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh self-signed certificate and its key, as PEM.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn write(dir: &tempfile::TempDir, certificate: &str, key: &str) -> TlsFiles {
        let files = TlsFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    }

    #[tokio::test]
    async fn a_changed_pair_comes_into_force_and_a_broken_one_does_not() {
        let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
        let ((certificate_a, key_a), (certificate_b, key_b)) = (pair(), pair());
        let tls = Tls::load(&env, write(&dir, &certificate_a, &key_a)).await.unwrap();
        assert!(!tls.reload(&env).await.unwrap());
        let before = tls.current();

        write(&dir, &certificate_b, &key_a);
        assert!(matches!(tls.reload(&env).await, Err(TlsError::Pair { .. })));
        assert!(Arc::ptr_eq(&before, &tls.current()));

        write(&dir, &certificate_b, &key_b);
        assert!(tls.reload(&env).await.unwrap());
        assert!(!Arc::ptr_eq(&before, &tls.current()));
    }

    #[tokio::test]
    async fn errors_name_the_file() {
        let (env, dir) = (Env::real(), tempfile::tempdir().unwrap());
        let files = write(&dir, "nothing", &pair().1);
        let error = Tls::load(&env, files.clone()).await.err().unwrap().to_string();
        assert!(error.contains("crt"), "{error}");
        std::fs::remove_file(&files.key).unwrap();
        let error = Tls::load(&env, files).await.err().unwrap().to_string();
        assert!(error.contains("key"), "{error}");
    }
}
