//! A client beside a server that speaks TLS and asks for certificates.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use garboard_api_client::{Identity, Outage, client};
use http::Request;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Puts a new certificate into a folder, and returns it.
    fn deploy(&self, folder: &Path) -> CertificateDer<'static> {
        let (certificate, key) = self.issue("client");
        fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        fs::write(folder.join("ca.crt"), self.certificate.pem()).unwrap();
        certificate.der().clone()
    }

    /// A server that answers each connection's first request and ends it; it tells who asked.
    async fn serve(&self) -> (String, mpsc::Receiver<CertificateDer<'static>>) {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let (certificate, key) = self.issue("127.0.0.1");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                let peer = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
                sender.send(peer).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        (format!("https://{address}"), seen)
    }
}

fn request() -> Request<Vec<u8>> {
    Request::get("/version").body(Vec::new()).unwrap()
}

#[tokio::test]
async fn an_identity_is_awaited_used_and_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (address, mut seen) = authority.serve().await;
    let client = client(address.parse().unwrap(), Identity::Folder(folder.path().into()), Outage::default());
    let error = client.request::<serde_json::Value>(request()).await.unwrap_err();
    assert!(format!("{error:?}").contains("ca.crt"), "the error names what is missing: {error:?}");

    for _ in 0..2 {
        let deployed = authority.deploy(folder.path());
        client.request::<serde_json::Value>(request()).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), deployed);
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _seen) = Authority::new().serve().await;
    Authority::new().deploy(folder.path());
    let client = client(address.parse().unwrap(), Identity::Folder(folder.path().into()), Outage::default());
    client.request::<serde_json::Value>(request()).await.unwrap_err();
}

#[tokio::test]
async fn an_identity_may_be_in_no_file() {
    let authority = Authority::new();
    let (address, mut seen) = authority.serve().await;
    let (certificate, key) = authority.issue("client");
    let identity = Identity::from_pem(&authority.certificate.pem(), &certificate.pem(), &key.serialize_pem()).unwrap();
    client(address.parse().unwrap(), identity, Outage::default())
        .request::<serde_json::Value>(request())
        .await
        .unwrap();
    assert_eq!(&seen.recv().await.unwrap(), certificate.der());
}
