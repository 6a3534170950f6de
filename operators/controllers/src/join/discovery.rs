//! Finds out a cluster's authority, of which only the pin is known: the API servers show it in their chain.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use garboard_api::PublicKeyPin;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pki::read::pin;

/// Longest time until the server has shown itself. The balancer waits for a server in its place.
const LIMIT: Duration = Duration::from_secs(30);

/// The authority was not found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No server answers, or it is not one of the cluster.
    #[error("no API server has answered as one of this cluster")]
    Io(#[from] io::Error),
    /// The same within the time that it has.
    #[error("no API server has answered within {} seconds", LIMIT.as_secs())]
    Timeout,
    /// TLS is not possible here.
    #[error(transparent)]
    Tls(#[from] Error),
    /// The server has shown no chain.
    #[error("the API server has shown no authority")]
    Nothing,
}

impl DiscoveryError {
    /// Whether nobody has answered yet, as it is while machines and networks start.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            // What TLS has against an answer comes as this.
            Self::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            Self::Timeout => true,
            Self::Tls(_) | Self::Nothing => false,
        }
    }
}

/// The certificate, PEM, of the authority with this pin, as the server behind a port of this machine shows it and is signed by it.
///
/// # Errors
/// [`DiscoveryError`].
pub(super) async fn authority(port: u16, pin: PublicKeyPin) -> Result<String, DiscoveryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { pin, provider: provider.clone(), found: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let connect = async {
        let address = Ipv4Addr::LOCALHOST;
        let stream = TcpStream::connect((address, port)).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(address.into()), stream).await
    };
    tokio::time::timeout(LIMIT, connect).await.map_err(|_| DiscoveryError::Timeout)??;
    let found = verifier.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    let der = found.ok_or(DiscoveryError::Nothing)?;
    Ok(pem_of(&der))
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))
}

/// Accepts a server whose chain has the authority with this pin and is signed by it.
#[derive(Debug)]
struct Pinned {
    pin: PublicKeyPin,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| pin(certificate) == Some(self.pin));
        let authority = authority.ok_or_else(|| {
            Error::General(format!("the server belongs to another cluster: its authority's key is not {}", self.pin))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
