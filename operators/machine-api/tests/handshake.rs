//! Handshakes that our own client would not make.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use garboard_machine_api::client::Client;
use garboard_machine_api::server::Limits;
use garboard_machine_api::testing::{Served, only, start};
use garboard_machine_api::{Identity, Role};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest time for anything here: many times what it takes.
const LIMIT: Duration = Duration::from_secs(30);

/// A client that does not look at whom it talks to.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

async fn server(person: &Identity) -> Served {
    start(only(person, "alice", Role::Admin), Limits::default()).await.unwrap()
}

/// An HTTP/2 client preface and an empty SETTINGS frame, which a server answers with its own.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn config(
    versions: &[&'static SupportedProtocolVersion],
    certificates: Vec<CertificateDer<'static>>,
    key: Option<&KeyPair>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless));
    let mut config = match key {
        Some(key) => {
            builder.with_client_auth_cert(certificates, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects and reads; gives the first byte that the server sends, or the alert that it ends with.
async fn shake(
    served: &Served,
    versions: &[&'static SupportedProtocolVersion],
    certificates: Vec<CertificateDer<'static>>,
    key: Option<&KeyPair>,
) -> Result<u8, AlertDescription> {
    let config = Arc::new(config(versions, certificates, key));
    let exchange = async {
        let tcp = TcpStream::connect((served.endpoint.host(), served.endpoint.port())).await?;
        let mut tls = TlsConnector::from(config).connect(ServerName::try_from("machine").unwrap(), tcp).await?;
        tls.write_all(PREFACE).await?;
        tls.read_u8().await
    };
    let outcome: std::io::Result<u8> = timeout(LIMIT, exchange).await.expect("ends in time");
    outcome.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    })
}

const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn key_of(person: &Identity) -> KeyPair {
    KeyPair::from_pem(&person.pem()).unwrap()
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let served = server(&Identity::generate().unwrap()).await;
    assert_eq!(shake(&served, TLS13, Vec::new(), None).await, Err(AlertDescription::CertificateRequired));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let key = key_of(&person);
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let outcome = shake(&served, &[&rustls::version::TLS12], vec![certificate.der().clone()], Some(&key)).await;
    assert_eq!(outcome, Err(AlertDescription::ProtocolVersion));
}

#[tokio::test]
async fn the_dates_and_names_in_a_certificate_are_irrelevant() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let key = key_of(&person);
    for (from, to) in [(1980, 1981), (4000, 4001)] {
        let mut params = CertificateParams::new(vec!["somebody.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.self_signed(&key).unwrap();
        shake(&served, TLS13, vec![certificate.der().clone()], Some(&key)).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_of_a_known_key_without_the_key_is_refused() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let certificate = CertificateParams::default().self_signed(&key_of(&person)).unwrap();
    let thief = KeyPair::generate().unwrap();
    // The configuration refuses a key that does not fit its certificate, so the thief resolves it past that check.
    let stolen = rustls::sign::CertifiedKey::new(
        vec![certificate.der().clone()],
        rustls::crypto::ring::sign::any_supported_type(&PrivatePkcs8KeyDer::from(thief.serialize_der()).into())
            .unwrap(),
    );
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(TLS13)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect((served.endpoint.host(), served.endpoint.port())).await.unwrap();
    let mut tls =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("machine").unwrap(), tcp).await.unwrap();
    let error = tls.read_u8().await.unwrap_err();
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
    assert_eq!(alert, Some(rustls::Error::AlertReceived(AlertDescription::DecryptError)));
}

#[tokio::test]
async fn a_chain_is_refused_even_when_it_begins_with_a_known_key() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let key = key_of(&person);
    let certificate = CertificateParams::default().self_signed(&key).unwrap().der().clone();
    let outcome = shake(&served, TLS13, vec![certificate.clone(), certificate], Some(&key)).await;
    assert_eq!(outcome, Err(AlertDescription::AccessDenied));
}

/// Samples of a strategy, the same in every run.
fn samples<T: std::fmt::Debug>(count: usize, strategy: impl Strategy<Value = T>) -> Vec<T> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Sends bytes and closes; returns when the server has closed as well.
async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    // The server may close first; then neither writing nor reading succeeds, and that is as good.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

async fn still_serves(served: &Served, person: &Identity) {
    let client = Client::connect(&served.endpoint, served.identity.pin(), person).await.unwrap();
    assert_eq!(client.version().caller_name, "alice");
}

/// Whatever a stranger sends, the server goes on serving those whom it knows.
#[tokio::test]
async fn random_bytes_do_not_disturb_the_server() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let noise = prop_oneof![
        vec(any::<u8>(), 0..600),
        // What starts like a handshake record gets further into the parser.
        vec(any::<u8>(), 0..600).prop_map(|rest| [&[0x16, 0x03, 0x01, 0x02, 0x00], &rest[..]].concat()),
    ];
    let exchange = stream::iter(samples(200, noise)).for_each_concurrent(8, |bytes| {
        let served = &served;
        async move {
            let tcp = TcpStream::connect((served.endpoint.host(), served.endpoint.port())).await.unwrap();
            send(tcp, &bytes).await;
        }
    });
    timeout(LIMIT, exchange).await.expect("every connection is closed in time");
    still_serves(&served, &person).await;
}

/// Nor does a known key with a broken HTTP/2 take more than its own connection.
#[tokio::test]
async fn random_frames_of_a_known_key_do_not_disturb_the_server() {
    let person = Identity::generate().unwrap();
    let served = server(&person).await;
    let key = key_of(&person);
    let certificate = CertificateParams::default().self_signed(&key).unwrap().der().clone();
    let config = Arc::new(config(TLS13, vec![certificate], Some(&key)));
    let frame =
        (0_u8..11, any::<u8>(), prop_oneof![Just(0_u32), Just(1), Just(3), any::<u32>()], vec(any::<u8>(), 0..80))
            .prop_map(|(kind, flags, stream, payload)| {
                let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
                [&length[1..], &[kind, flags], &stream.to_be_bytes(), &payload].concat()
            });
    let exchange = stream::iter(samples(200, vec(frame, 1..12))).for_each_concurrent(8, |frames| {
        let (served, config) = (&served, config.clone());
        async move {
            let tcp = TcpStream::connect((served.endpoint.host(), served.endpoint.port())).await.unwrap();
            let name = ServerName::try_from("machine").unwrap();
            let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
            send(tls, &[PREFACE, &frames.concat()].concat()).await;
        }
    });
    timeout(LIMIT, exchange).await.expect("every connection is closed in time");
    still_serves(&served, &person).await;
    assert_eq!(served.machine.state().calls, Vec::<String>::new());
}
