//! What a client shows, and whom it trusts.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderValue;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// The authority that signs the API server's certificate, PEM.
const AUTHORITY: &str = "ca.crt";
/// The client's certificate, PEM.
const CERTIFICATE: &str = "tls.crt";
/// Its key, PEM.
const KEY: &str = "tls.key";

/// An identity that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is not there or cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or key is not what it should be.
    #[error("not a PEM certificate or key")]
    Pem(#[from] pem::Error),
    /// A token has characters that no header can have.
    #[error("not a token")]
    Token,
    /// Certificate, key and authority do not make an identity.
    #[error("not an identity")]
    Tls(#[from] rustls::Error),
}

/// A client's certificate with its key, and the authority that it trusts.
#[derive(Clone)]
pub enum Identity {
    /// That of the files `tls.crt`, `tls.key` and `ca.crt` in this folder, as they are at each new connection.
    Folder(PathBuf),
    /// One that is in no file.
    Fixed(Arc<ClientConfig>),
    /// One that shows a token in place of a certificate.
    Token {
        /// Whom it trusts.
        trust: Arc<ClientConfig>,
        /// The header's value.
        header: HeaderValue,
    },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "Folder({})", folder.display()),
            Self::Fixed(_) => f.write_str("Fixed"),
            Self::Token { .. } => f.write_str("Token"),
        }
    }
}

impl Identity {
    /// One that is in no file; each argument is PEM.
    ///
    /// # Errors
    /// When they are something else.
    pub fn from_pem(authority: &str, certificate: &str, key: &str) -> Result<Self, IdentityError> {
        configuration(authority.as_bytes(), certificate.as_bytes(), key.as_bytes()).map(Self::Fixed)
    }

    /// One that shows a token; `authority` is PEM.
    ///
    /// # Errors
    /// When the authority is something else, or the token cannot be in a header.
    pub fn of_token(authority: &str, token: &str) -> Result<Self, IdentityError> {
        let trust = builder(authority.as_bytes())?.with_no_client_auth();
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| IdentityError::Token)?;
        header.set_sensitive(true);
        Ok(Self::Token { trust: Arc::new(trust), header })
    }

    /// What is to be said in each request, besides what TLS says.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        match self {
            Self::Token { header, .. } => Some(header.clone()),
            Self::Folder(_) | Self::Fixed(_) => None,
        }
    }

    /// The configuration of the next connection. Connections are few: reading the files again costs nothing that counts.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        match self {
            Self::Fixed(config) | Self::Token { trust: config, .. } => Ok(config.clone()),
            Self::Folder(folder) => {
                let read = |name| {
                    let path = folder.join(name);
                    fs::read(&path).map_err(|source| IdentityError::Read { path, source })
                };
                configuration(&read(AUTHORITY)?, &read(CERTIFICATE)?, &read(KEY)?)
            }
        }
    }
}

fn configuration(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Arc<ClientConfig>, IdentityError> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
    let config = builder(authority)?.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
    Ok(Arc::new(config))
}

/// TLS 1.3 with servers that these authorities (PEM) vouch for.
fn builder(authority: &[u8]) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    Ok(builder.with_root_certificates(roots))
}
