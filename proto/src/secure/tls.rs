//! TLS 1.3 between nodes: both sides show the self-signed certificate of their Ed25519 key, and are known
//! by that key alone. Names, dates and issuers in certificates are ignored; sessions are never resumed,
//! so that every connection proves possession of the key afresh.

use super::{Secure, SecureError, Secured};
use crate::identity::{Identity, TLS_NAME};
use async_trait::async_trait;
use hayloft_common::env::BoxStream;
use hayloft_common::id::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig};
use rustls::{Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::{Arc, OnceLock};

/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Label under which both sides derive the session's binding (RFC 8446 §7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-hayloft-rpc-v1";

/// [`Secure`] with rustls.
pub struct TlsSecure {
    id: NodeId,
    provider: Arc<CryptoProvider>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    acceptor: tokio_rustls::TlsAcceptor,
    name: ServerName<'static>,
}

impl TlsSecure {
    pub fn new(identity: &Identity) -> Result<Self, SecureError> {
        let provider = Arc::new(provider());
        let verifier = Arc::new(KeyVerifier::new(provider.clone(), None));
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate()], identity.private_key())?;
        server.send_tls13_tickets = 0;
        Ok(Self {
            id: identity.id(),
            provider,
            certificate: identity.certificate(),
            key: identity.private_key(),
            acceptor: Arc::new(server).into(),
            name: ServerName::try_from(TLS_NAME).map_err(|e| Error::General(e.to_string()))?,
        })
    }
}

#[async_trait]
impl Secure for TlsSecure {
    async fn client(&self, stream: BoxStream, expect: Option<NodeId>) -> Result<Secured, SecureError> {
        // One verifier per connection: it knows whom to expect and remembers whom it saw.
        let verifier = Arc::new(KeyVerifier::new(self.provider.clone(), expect));
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let connected = connector.connect(self.name.clone(), stream).await;
        if let (Some(expected), Some(&found)) = (expect, verifier.seen.get())
            && expected != found
        {
            return Err(SecureError::WrongPeer { expected, found });
        }
        let stream = connected?;
        let session = stream.get_ref().1;
        let peer = peer_id(session.peer_certificates())?;
        let binding = session.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        Ok(Secured { stream: Box::new(stream), peer, binding })
    }

    async fn server(&self, stream: BoxStream) -> Result<Secured, SecureError> {
        let stream = self.acceptor.accept(stream).await?;
        let session = stream.get_ref().1;
        let peer = peer_id(session.peer_certificates())?;
        let binding = session.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        Ok(Secured { stream: Box::new(stream), peer, binding })
    }

    fn local_id(&self) -> NodeId {
        self.id
    }
}

/// aws-lc-rs with AES-GCM first, or ChaCha20 first where the processor has no AES instructions (small
/// ARM boards): the dialling side's order decides.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut suites = vec![TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    if !has_aes() {
        suites.rotate_right(1);
    }
    CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Result<NodeId, SecureError> {
    let certificate = certificates.and_then(<[_]>::first).ok_or(SecureError::NoCertificate)?;
    Ok(key_of(certificate)?)
}

/// The Ed25519 key in a certificate.
fn key_of(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let spki = parsed.subject_public_key_info();
    spki.strip_prefix(&ED25519_SPKI)
        .and_then(|key| NodeId::try_from(key).ok())
        .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// Accepts any Ed25519 certificate, or only the expected one; the handshake signature then proves that
/// the peer holds its key.
#[derive(Debug)]
struct KeyVerifier {
    provider: Arc<CryptoProvider>,
    expect: Option<NodeId>,
    seen: OnceLock<NodeId>,
}

impl KeyVerifier {
    fn new(provider: Arc<CryptoProvider>, expect: Option<NodeId>) -> Self {
        Self { provider, expect, seen: OnceLock::new() }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = key_of(end_entity)?;
        let _ = self.seen.set(found);
        if self.expect.is_some_and(|expected| expected != found) {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken between nodes".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken between nodes".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
