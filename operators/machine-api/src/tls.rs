//! TLS 1.3 between two sides that know each other's keys.
//!
//! Certificates only carry keys here, so nothing else in them is looked at. The handshake's signature is verified with the
//! certificate's key, which proves that the peer holds the private half. Sessions are never resumed: a resumed session
//! would skip the look at the access list.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use tokio::sync::watch;

use crate::pin::public_key;
use crate::{AccessList, Identity, Pin};

/// The protocol that both sides must speak inside of TLS.
const ALPN: &[u8] = b"h2";

/// The machine presented another key than the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine's key is {presented}, not {expected}")]
pub(crate) struct PinMismatch {
    pub(crate) expected: Pin,
    pub(crate) presented: Pin,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The machine's side: admits the keys that are in the list at the time of the handshake.
pub(crate) fn server_config(identity: &Identity, access: watch::Receiver<AccessList>) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = KnownClient { access, signatures: Signatures::of(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.certificates(), identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The person's side: accepts the machine with this pin and no other.
pub(crate) fn client_config(identity: &Identity, machine: Pin) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = PinnedServer { pin: machine, signatures: Signatures::of(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.certificates(), identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A chain says nothing here, so a peer that sends one is not one of ours.
fn only_certificate(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    match intermediates {
        [] => Ok(()),
        _ => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

/// What both sides verify alike: that the peer has signed the handshake with the key that its certificate carries.
struct Signatures(WebPkiSupportedAlgorithms);

impl Signatures {
    fn of(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }

    /// Nobody speaks it here.
    fn tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

struct KnownClient {
    access: watch::Receiver<AccessList>,
    signatures: Signatures,
}

impl fmt::Debug for KnownClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownClient").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for KnownClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        only_certificate(intermediates)?;
        let pin = Pin::of_public_key(&public_key(end_entity)?);
        match self.access.borrow().get(&pin) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            // The client is told by the alert access_denied, which rustls sends for this error.
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Signatures::tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.schemes()
    }
}

struct PinnedServer {
    pin: Pin,
    signatures: Signatures,
}

impl fmt::Debug for PinnedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedServer").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = Pin::of_public_key(&public_key(end_entity)?);
        if presented != self.pin {
            let mismatch = PinMismatch { expected: self.pin, presented };
            return Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into());
        }
        only_certificate(intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Signatures::tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.schemes()
    }
}
