//! What a client shows, and whom it trusts.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "tpm")]
use garboard_tpm::{SealedKeyError, Tpm};
use http::HeaderValue;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
#[cfg(feature = "tpm")]
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

#[cfg(feature = "tpm")]
use crate::sealed::TpmSigner;

/// The authority that signs the API server's certificate, PEM.
const AUTHORITY: &str = "ca.crt";
/// The client's certificate, PEM.
const CERTIFICATE: &str = "tls.crt";
/// Its key, PEM: itself, or, with the feature `tpm`, a key of the machine's TPM.
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
    /// A key says that it is a TPM's, and is of no use.
    #[cfg(feature = "tpm")]
    #[error(transparent)]
    Sealed(#[from] SealedKeyError),
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
    /// One that is in no file, and in no TPM; each argument is PEM.
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
                let (authority, certificate, key) = (read(AUTHORITY)?, read(CERTIFICATE)?, read(KEY)?);
                #[cfg(feature = "tpm")]
                if let Some(key) = TpmSigner::read(&key, Tpm::find())? {
                    return sealed(&authority, &certificate, key);
                }
                configuration(&authority, &certificate, &key)
            }
        }
    }
}

fn configuration(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Arc<ClientConfig>, IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(key)?;
    Ok(Arc::new(builder(authority)?.with_client_auth_cert(chain(certificate)?, key)?))
}

#[cfg(feature = "tpm")]
fn sealed(authority: &[u8], certificate: &[u8], key: TpmSigner) -> Result<Arc<ClientConfig>, IdentityError> {
    let certified = CertifiedKey::new(chain(certificate)?, Arc::new(key));
    certified.keys_match()?;
    Ok(Arc::new(builder(authority)?.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))))
}

fn chain(certificate: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(certificate).collect()
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

#[cfg(test)]
mod tests {
    use std::error::Error;

    use garboard_tpm::TpmKey;
    use garboard_tpm::testing::Emulator;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
        SignatureAlgorithm,
    };
    use rustls::ServerConfig;
    use rustls::pki_types::ServerName;
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    const HELLO: &[u8] = b"hello";

    struct PublicKey<'a>(&'a TpmKey);

    impl PublicKeyData for PublicKey<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0.point()
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn certify(&self, key: &impl PublicKeyData) -> rcgen::Certificate {
            let names = vec!["localhost".to_owned()];
            CertificateParams::new(names).unwrap().signed_by(key, &self.0).unwrap()
        }

        fn server(&self) -> TlsAcceptor {
            let key = KeyPair::generate().unwrap();
            let certificate = self.certify(&key).der().clone();
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let clients =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
            let config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_client_cert_verifier(clients)
                .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
            TlsAcceptor::from(Arc::new(config.unwrap()))
        }

        fn client(&self, key: &TpmKey, tpm: Option<Tpm>) -> Result<Arc<ClientConfig>, IdentityError> {
            let certificate = self.certify(&PublicKey(key)).pem();
            let key = TpmSigner::read(key.to_pem().unwrap().as_bytes(), tpm)?.unwrap();
            sealed(self.0.pem().as_bytes(), certificate.as_bytes(), key)
        }
    }

    /// What a server that asks for a certificate hears from a client.
    async fn say_hello(authority: &Authority, client: Arc<ClientConfig>) -> Result<Vec<u8>, io::Error> {
        let (near, far) = duplex(1 << 16);
        let hears = async {
            let mut stream = authority.server().accept(far).await?;
            let mut said = vec![0; HELLO.len()];
            stream.read_exact(&mut said).await?;
            Ok((said, stream))
        };
        let says = async {
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(client).connect(name, near).await?;
            stream.write_all(HELLO).await?;
            stream.flush().await?;
            Ok(stream)
        };
        // Both ends stay until both are done.
        futures::future::try_join(hears, says).await.map(|((said, _), _)| said)
    }

    #[tokio::test]
    async fn a_server_believes_a_client_whose_key_is_in_a_tpm() {
        let (emulator, authority) = (Emulator::start().unwrap(), Authority::new());
        let key = emulator.tpm().create_key().unwrap();
        let client = authority.client(&key, Some(emulator.tpm())).unwrap();
        for _ in 0..2 {
            assert_eq!(say_hello(&authority, client.clone()).await.unwrap(), HELLO);
        }
    }

    #[tokio::test]
    async fn a_client_without_its_tpm_is_none() {
        let (emulator, other, authority) = (Emulator::start().unwrap(), Emulator::start().unwrap(), Authority::new());
        let key = emulator.tpm().create_key().unwrap();
        assert!(matches!(authority.client(&key, None), Err(IdentityError::Sealed(SealedKeyError::NoTpm))));
        let client = authority.client(&key, Some(other.tpm())).unwrap();
        let error = say_hello(&authority, client).await.unwrap_err();
        let told = format!("{error} {:?}", error.source());
        assert!(told.contains("another TPM"), "{told}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (emulator, authority) = (Emulator::start().unwrap(), Authority::new());
        let (one, other) = (emulator.tpm().create_key().unwrap(), emulator.tpm().create_key().unwrap());
        let certificate = authority.certify(&PublicKey(&one)).pem();
        let key = TpmSigner::read(other.to_pem().unwrap().as_bytes(), Some(emulator.tpm())).unwrap().unwrap();
        let refused = sealed(authority.0.pem().as_bytes(), certificate.as_bytes(), key);
        assert!(matches!(refused, Err(IdentityError::Tls(_))));
    }
}
