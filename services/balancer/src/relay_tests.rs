//! Real sockets on loopback; each server is a few lines of script.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

use super::*;

const LIMITS: Limits = Limits {
    hold: Duration::from_secs(10),
    connect: Duration::from_secs(1),
    answer: Duration::from_millis(100),
    pause: (Duration::from_millis(5), Duration::from_millis(20)),
    withdrawn: Duration::from_millis(400),
};
/// No step takes this long.
const LIMIT: Duration = Duration::from_secs(20);

fn run(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(LIMIT, test).await.expect("the test hangs") });
}

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port on which nothing listens.
async fn free() -> SocketAddr {
    bound().await.1
}

/// A client whose connection is relayed, and the relay's task.
async fn client(shared: &Arc<Shared>, limits: Limits) -> (TcpStream, JoinHandle<()>) {
    let (listener, address) = bound().await;
    let client = TcpStream::connect(address).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let shared = shared.clone();
    (client, tokio::spawn(async move { relay(accepted, &shared, &limits).await }))
}

fn shared(servers: &[SocketAddr]) -> Arc<Shared> {
    let shared = Arc::new(Shared::default());
    shared.set(servers);
    shared
}

/// Answers one connection: what it was told to the end of a line, after `name`.
async fn answer(listener: TcpListener, name: &'static str) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        assert_ne!(stream.read_buf(&mut line).await.unwrap(), 0);
    }
    stream.write_all(&[name.as_bytes(), b": ", &line].concat()).await.unwrap();
}

async fn whole(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn a_client_that_comes_before_any_server_is_held() {
    run(async {
        let address = free().await;
        let shared = shared(&[address]);
        let (mut client, _) = client(&shared, LIMITS).await;
        client.write_all(b"hel").await.unwrap();
        assert!(timeout(Duration::from_millis(100), client.read_u8()).await.is_err(), "it is held");
        // What it says while it is held is not lost.
        client.write_all(b"lo\n").await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        tokio::spawn(answer(listener, "late"));
        assert_eq!(whole(&mut client).await, "late: hello\n");
    });
}

#[test]
fn a_client_waits_for_servers_to_be_declared() {
    run(async {
        let limits = Limits { pause: (LIMIT, LIMIT), ..LIMITS };
        let shared = shared(&[]);
        let (mut client, _) = client(&shared, limits).await;
        client.write_all(b"hello\n").await.unwrap();
        assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err(), "there is no server");
        let (listener, address) = bound().await;
        tokio::spawn(answer(listener, "declared"));
        shared.set(&[address]);
        assert_eq!(whole(&mut client).await, "declared: hello\n");
    });
}

#[test]
fn the_next_server_answers_for_one_that_hangs_and_for_one_that_is_away() {
    run(async {
        let (_hangs, hanging) = bound().await;
        let (serves, serving) = bound().await;
        let shared = shared(&[hanging, free().await, serving]);
        tokio::spawn(answer(serves, "third"));
        let (mut client, _) = client(&shared, LIMITS).await;
        client.write_all(b"hello\n").await.unwrap();
        assert_eq!(whole(&mut client).await, "third: hello\n");
        assert_eq!(shared.order()[0], serving, "it is asked first now");
    });
}

#[test]
fn a_lone_server_has_as_long_as_the_client_waits() {
    run(async {
        let (slow, address) = bound().await;
        let shared = shared(&[address]);
        let (mut client, _) = client(&shared, LIMITS).await;
        client.write_all(b"hello\n").await.unwrap();
        assert!(timeout(LIMITS.answer * 3, client.read_u8()).await.is_err(), "it does not serve yet");
        tokio::spawn(answer(slow, "slow"));
        assert_eq!(whole(&mut client).await, "slow: hello\n");
    });
}

#[test]
fn bytes_go_both_ways_until_either_end_closes() {
    run(async {
        let (listener, address) = bound().await;
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap()
        });
        let (client, relay) = client(&shared(&[address]), LIMITS).await;
        let (mut read, mut write) = client.into_split();
        let sent: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move { write.write_all(&sent).await.map(|()| write) });
        let mut back = vec![0; expected.len()];
        read.read_exact(&mut back).await.unwrap();
        assert!(back == expected, "what came back is not what was sent");
        assert_eq!(read.read(&mut [0]).await.unwrap(), 0, "the client's end reached the server, whose end came back");
        assert_eq!(echo.await.unwrap(), 1_000_000);
        relay.await.unwrap();
    });
}

#[test]
fn a_connection_ends_with_its_server_being_none_any_more() {
    run(async {
        let ((first, first_address), (_second, second_address)) = (bound().await, bound().await);
        let shared = shared(&[first_address, second_address]);
        let (mut client, relay) = client(&shared, LIMITS).await;
        client.write_all(b"hello\n").await.unwrap();
        let (mut server, _) = first.accept().await.unwrap();
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        shared.set(&[second_address, first_address]);
        assert!(timeout(LIMITS.answer, client.read_u8()).await.is_err(), "it ends although its server stays");
        for withdrawn in [[second_address].as_slice(), &[first_address]] {
            shared.set(withdrawn);
            assert!(
                timeout(LIMITS.withdrawn / 2, client.read_u8()).await.is_err(),
                "it ends although its server is back"
            );
        }
        shared.set(&[second_address]);
        assert!(client.read_u8().await.is_err());
        relay.await.unwrap();
    });
}

#[test]
fn a_client_that_goes_or_waits_too_long_is_let_go() {
    run(async {
        let (_hangs, hanging) = bound().await;
        for servers in [vec![], vec![free().await], vec![hanging]] {
            let shared = shared(&servers);
            let (mut leaving, relay) = client(&shared, LIMITS).await;
            leaving.write_all(b"hello\n").await.unwrap();
            drop(leaving);
            relay.await.unwrap();

            let short = Limits { hold: Duration::from_millis(50), ..LIMITS };
            let (mut waiting, relay) = client(&shared, short).await;
            waiting.write_all(b"hello\n").await.unwrap();
            relay.await.unwrap();
            assert!(matches!(waiting.read(&mut [0]).await, Ok(0) | Err(_)), "{servers:?}");
        }
    });
}
