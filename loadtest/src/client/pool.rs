//! Connections to one endpoint: http/1.1 with keep-alive, over TCP or TLS, dialled through the network seam.
//!
//! A connection carries one request at a time and returns to the pool when the answer was read to its end; an
//! answer dropped half-way closes its connection. Nothing is retried here but a request of which no byte was
//! sent because the idle connection had been closed.

use super::body::SendBody;
use super::error::Error;
use hayloft_common::env::{BoxStream, Env};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// One service address and its idle connections.
pub(super) struct Endpoint {
    /// As given, for messages: `http://127.0.0.1:3900`.
    pub(super) url: String,
    /// Value of the `Host` header.
    pub(super) host: String,
    dial: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<SendRequest<SendBody>>>,
    env: Env,
}

/// A connection in use; give it back with [`Endpoint::give_back`] when the answer was read to its end.
pub(super) type Connection = SendRequest<SendBody>;

impl Endpoint {
    /// Parses `http[s]://host[:port]`. TLS trusts the system's roots and the certificates in `ca_file` (PEM).
    pub(super) fn new(env: Env, url: &str, ca_file: Option<&Path>) -> Result<Self, Error> {
        let bad = |why: &str| Error::Request(format!("endpoint {url:?}: {why}"));
        let uri: http::Uri = url.trim_end_matches('/').parse().map_err(|_| bad("not a URL"))?;
        let authority = uri.authority().ok_or_else(|| bad("has no host; write http://HOST:PORT"))?;
        if uri.path() != "/" && !uri.path().is_empty() {
            return Err(bad("must not have a path"));
        }
        let (tls, default_port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => {
                let name = authority.host().trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(name).map_err(|_| bad("not a host name for TLS"))?;
                (Some((connector(ca_file)?, name)), 443)
            }
            _ => return Err(bad("scheme must be http or https")),
        };
        let dial = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(default_port));
        Ok(Self {
            url: url.to_owned(),
            host: authority.as_str().to_owned(),
            dial,
            tls,
            idle: Mutex::new(Vec::new()),
            env,
        })
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let failed = |source| Error::Connect { endpoint: self.url.clone(), source };
        let stream = self.env.net.dial(&self.dial).await.map_err(failed)?;
        let stream: BoxStream = match &self.tls {
            None => stream,
            Some((connector, name)) => {
                Box::new(connector.connect(name.clone(), stream).await.map_err(failed)?)
            }
        };
        let (sender, connection) = Builder::new()
            .max_buf_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        self.env.spawn("s3-connection", async move {
            // Its error reaches whoever waits for the answer.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Sends a request, on an idle connection where there is one, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        mut request: Request<SendBody>,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        let failed = |source| Error::Transport { endpoint: self.url.clone(), source };
        loop {
            let Some(mut connection) = self.idle() else { break };
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed(error.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.send_request(request).await.map_err(failed)?;
        Ok((response, connection))
    }

    /// Keeps a connection for the next request.
    pub(super) fn give_back(&self, connection: Connection) {
        if !connection.is_closed() {
            self.idle.lock().push(connection);
        }
    }
}

fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, Error> {
    let bad = |what: String| Error::Request(what);
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca_file {
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|error| bad(format!("cannot read {}: {error}", path.display())))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| bad(format!("{}: {error}", path.display())))?;
            roots.add(certificate).map_err(|error| bad(format!("{}: {error}", path.display())))?;
        }
    }
    for certificate in rustls_native_certs::load_native_certs().certs {
        // The system's store may hold certificates that rustls does not understand: those stay untrusted.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
