//! A server to ask in tests.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::question::Questions;

/// An answer that lets its connection live.
pub const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A server with a certificate for 127.0.0.1 that answers as it is told at the moment.
pub struct Server {
    address: std::net::SocketAddr,
    ca_file: PathBuf,
    answer: watch::Sender<Option<&'static str>>,
    connections: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], private.into()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.crt");
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        let (answer, answers) = watch::channel(Some(GOOD));
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, answers) = (acceptor.clone(), answers.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let mut asked = [0; 1024];
                    while stream.read(&mut asked).await.is_ok_and(|length| length > 0) {
                        let answer = *answers.borrow();
                        match answer {
                            None => std::future::pending().await,
                            Some("") => return,
                            Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                        }
                    }
                });
            }
        });
        Self { address, ca_file, answer, connections, _directory: directory }
    }

    /// Answers like this from now on; by closing the connection if it is empty, and never if there is none.
    pub fn answer(&self, answer: Option<&'static str>) {
        self.answer.send_replace(answer);
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn questions(&self) -> Questions {
        Questions::new(self.address, "/readyz", &self.ca_file)
    }
}
