use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A server with a certificate for 127.0.0.1 that answers each connection with one line, or never.
struct Server {
    address: SocketAddr,
    ca_file: PathBuf,
    other_ca_file: PathBuf,
    _directory: tempfile::TempDir,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn serve(answer: Option<&'static str>) -> Server {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (issuer, other) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let private = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], private.into()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                match answer {
                    Some(line) => stream.write_all(line.as_bytes()).await.unwrap(),
                    None => std::future::pending().await,
                }
                stream.shutdown().await.ok();
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (ca_file, other_ca_file) = (write("ca.crt", issuer.pem()), write("other.crt", other.pem()));
    Server { address, ca_file, other_ca_file, _directory: directory }
}

fn probe(server: &Server, ca_file: &Path) -> Probe {
    let action = ProbeAction::Https {
        address: server.address,
        path: "/readyz".to_owned(),
        ca_file: ca_file.to_path_buf(),
        client: None,
    };
    Probe { action, period_ms: 100, timeout_ms: 500, failure_threshold: 1 }
}

#[tokio::test]
async fn only_a_trusted_success_counts() {
    let good = serve(Some("HTTP/1.1 200 OK\r\n\r\nok")).await;
    ask(&probe(&good, &good.ca_file)).await.unwrap();

    let untrusted = ask(&probe(&good, &good.other_ca_file)).await.unwrap_err();
    assert!(matches!(untrusted, ProbeError::Connection { .. }), "{untrusted}");

    let missing = ask(&probe(&good, Path::new("/absent"))).await.unwrap_err().to_string();
    assert!(missing.contains("/absent"), "{missing}");

    let failing = serve(Some("HTTP/1.1 500 Internal Server Error\r\n\r\n")).await;
    let error = ask(&probe(&failing, &failing.ca_file)).await.unwrap_err().to_string();
    assert!(error.contains("/readyz") && error.contains("500"), "{error}");
}

#[tokio::test]
async fn silence_and_noise_are_failures() {
    let silent = serve(None).await;
    let error = ask(&probe(&silent, &silent.ca_file)).await.unwrap_err();
    assert!(matches!(error, ProbeError::Timeout(_)), "{error}");

    for noise in ["", "\r\n", "SSH-2.0-x\r\n", "HTTP/1.1 2\r\n"] {
        let server = serve(Some(noise)).await;
        assert!(ask(&probe(&server, &server.ca_file)).await.is_err(), "{noise:?}");
    }
}
