//! What a client shows, and whom it trusts.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};

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
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "Folder({})", folder.display()),
            Self::Fixed(_) => f.write_str("Fixed"),
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

    /// The configuration of the next connection. Connections are few: reading the files again costs nothing that counts.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        match self {
            Self::Fixed(config) => Ok(config.clone()),
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
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
    Ok(Arc::new(config))
}
