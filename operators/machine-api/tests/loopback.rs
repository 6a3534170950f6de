//! The client against the server, over TCP and TLS on the loopback interface.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use futures::StreamExt;
use garboard_machine_api::client::{Client, ClientError};
use garboard_machine_api::proto::{KubeconfigResponse, LogLine, Service};
use garboard_machine_api::server::Limits;
use garboard_machine_api::testing::{Served, only, start};
use garboard_machine_api::{Access, AccessList, Identity, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest time for anything here: many times what it takes.
const LIMIT: Duration = Duration::from_secs(30);

async fn served(role: Role) -> (Served, Identity) {
    let person = Identity::generate().unwrap();
    let served = start(only(&person, "alice", role), Limits::default()).await.unwrap();
    served.machine.state().services = vec![Service { name: "etcd".into(), ..Service::default() }];
    served.machine.state().kubeconfig = Some(KubeconfigResponse::default());
    (served, person)
}

async fn connect(served: &Served, person: &Identity) -> Result<Client, ClientError> {
    timeout(LIMIT, Client::connect(&served.endpoint, served.identity.pin(), person)).await.expect("connects in time")
}

#[tokio::test]
async fn the_machine_knows_the_caller_by_its_key() {
    let (served, person) = served(Role::Operator).await;
    let client = connect(&served, &person).await.unwrap();
    assert_eq!((client.version().caller_name.as_str(), client.version().caller_role.as_str()), ("alice", "operator"));
}

#[tokio::test]
async fn each_role_may_call_what_the_table_says() {
    for role in [Role::Reader, Role::Operator, Role::Admin] {
        let (served, person) = served(role).await;
        let mut client = connect(&served, &person).await.unwrap();
        client.status().await.unwrap();
        client.services().await.unwrap();
        assert!(client.logs("etcd", 1, false).await.unwrap().next().await.unwrap().is_ok());
        client.kubeconfig().await.unwrap();
        let operator = [client.restart_service("etcd").await, client.reboot("why").await, client.shutdown("why").await];
        let admin = [client.apply_manifest(String::new(), false).await.map(drop)];
        for (needed, outcomes) in [(Role::Operator, &operator[..]), (Role::Admin, &admin[..])] {
            for outcome in outcomes {
                match outcome {
                    Ok(()) => assert!(role >= needed, "{role} may not"),
                    Err(ClientError::Forbidden { message }) => {
                        assert!(role < needed, "{message}");
                        assert!(message.contains(&format!("the role {role}")), "{message}");
                        assert!(message.ends_with(&format!("needs the role {needed}")), "{message}");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        let changed: Vec<_> =
            served.machine.state().calls.iter().filter(|c| !c.contains("Kubeconfig")).cloned().collect();
        let expected = ["alice ServiceRestart etcd", "alice Reboot why", "alice Shutdown why"];
        let count = if role >= Role::Operator { 3 } else { 0 } + usize::from(role == Role::Admin);
        assert_eq!(changed.len(), count, "{role}: {changed:?}");
        assert!(changed.iter().zip(expected).all(|(call, expected)| call == expected), "{changed:?}");
    }
}

#[tokio::test]
async fn an_unknown_key_is_refused_by_name() {
    let (served, _) = served(Role::Admin).await;
    let stranger = Identity::generate().unwrap();
    for _ in 0..20 {
        match connect(&served, &stranger).await {
            Err(error @ ClientError::UnknownKey { .. }) => {
                assert!(error.to_string().contains(&stranger.pin().to_string()), "{error}");
                assert!(!error.is_transient());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(served.machine.state().calls.is_empty());
}

#[tokio::test]
async fn a_machine_with_another_key_is_refused_and_learns_nothing() {
    let (served, person) = served(Role::Admin).await;
    let expected = Identity::generate().unwrap().pin();
    match Client::connect(&served.endpoint, expected, &person).await {
        Err(ClientError::OtherMachine { expected: wanted, presented, .. }) => {
            assert_eq!((wanted, presented), (expected, served.identity.pin()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_empty_list_lets_nobody_in() {
    let person = Identity::generate().unwrap();
    let served = start(AccessList::default(), Limits::default()).await.unwrap();
    assert!(matches!(connect(&served, &person).await, Err(ClientError::UnknownKey { .. })));
}

#[tokio::test]
async fn a_new_access_list_counts_at_once() {
    let (served, person) = served(Role::Admin).await;
    let mut client = connect(&served, &person).await.unwrap();
    let mut following = client.logs("etcd", 1, true).await.unwrap();
    assert!(following.next().await.unwrap().is_ok());

    let other = Identity::generate().unwrap();
    served.access.send_replace(only(&other, "bob", Role::Reader));
    let ended = timeout(LIMIT, following.next()).await.expect("the stream of a withdrawn key ends");
    assert!(matches!(ended, Some(Err(ClientError::Lost { .. }))), "{ended:?}");
    assert!(client.reboot("late").await.is_err(), "the connection of a withdrawn key is closed");
    assert!(matches!(connect(&served, &person).await, Err(ClientError::UnknownKey { .. })));
    assert_eq!(connect(&served, &other).await.unwrap().version().caller_name, "bob");
    assert!(served.machine.state().calls.is_empty());
}

#[tokio::test]
async fn a_change_that_leaves_a_key_alone_leaves_its_connection_alone() {
    let (served, person) = served(Role::Admin).await;
    let mut client = connect(&served, &person).await.unwrap();
    let more = Access { name: "bob".into(), role: Role::Reader };
    let alice = Access { name: "alice".into(), role: Role::Admin };
    let bob = Identity::generate().unwrap();
    served.access.send_replace([(person.pin(), alice), (bob.pin(), more)].into_iter().collect());
    client.reboot("still here").await.unwrap();
}

#[tokio::test]
async fn a_lesser_role_counts_at_once() {
    let (served, person) = served(Role::Admin).await;
    let mut client = connect(&served, &person).await.unwrap();
    served.access.send_replace(only(&person, "alice", Role::Reader));
    assert!(client.reboot("as admin").await.is_err());
    let mut client = connect(&served, &person).await.unwrap();
    assert!(matches!(client.reboot("as reader").await, Err(ClientError::Forbidden { .. })));
    assert!(served.machine.state().calls.is_empty());
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_and_the_connection_lives() {
    let (served, person) = served(Role::Admin).await;
    let mut client = connect(&served, &person).await.unwrap();
    let large = "a".repeat(Limits::default().message + 1);
    let refused = client.apply_manifest(large, false).await;
    assert!(matches!(&refused, Err(ClientError::Invalid { message }) if message.contains("too large")), "{refused:?}");
    let fits = "a".repeat(Limits::default().message - 100);
    client.apply_manifest(fits, false).await.unwrap();
}

/// Connections that begin a handshake and do not go on with it.
async fn hanging(served: &Served, count: usize) -> Vec<TcpStream> {
    let mut hanging = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect((served.endpoint.host(), served.endpoint.port())).await.unwrap();
        // The start of a TLS record whose rest never comes.
        stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
        hanging.push(stream);
    }
    hanging
}

async fn closed(mut stream: TcpStream) {
    let read = timeout(LIMIT, stream.read(&mut [0; 64])).await.expect("the hanging connection is closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let person = Identity::generate().unwrap();
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let served = start(only(&person, "alice", Role::Reader), limits).await.unwrap();
    for stream in hanging(&served, 2).await {
        closed(stream).await;
    }
}

#[tokio::test]
async fn hanging_handshakes_keep_nobody_out() {
    let person = Identity::generate().unwrap();
    let limits = Limits { handshakes: 4, handshake: 10 * LIMIT, ..Limits::default() };
    let served = start(only(&person, "alice", Role::Reader), limits).await.unwrap();
    let mut hanging = hanging(&served, 40).await;
    let mut client = connect(&served, &person).await.unwrap();
    closed(hanging.remove(0)).await;
    client.status().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_old_and_idle_is_closed_and_an_open_stream_is_not_cut() {
    let person = Identity::generate().unwrap();
    let limits = Limits { connections: 1, age: Duration::from_millis(200), ..Limits::default() };
    let served = start(only(&person, "alice", Role::Reader), limits).await.unwrap();
    let mut first = connect(&served, &person).await.unwrap();
    let mut following = first.logs("kernel", 1, true).await.unwrap();
    assert!(following.next().await.unwrap().is_ok());
    let more = timeout(Duration::from_secs(1), following.next()).await;
    assert!(more.is_err(), "the stream was cut: {more:?}");
    drop(following);
    let again = async {
        while connect(&served, &person).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, again).await.expect("the idle connection, which is still held, is closed");
    drop(first);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_others_live() {
    let person = Identity::generate().unwrap();
    let limits = Limits { connections: 1, ..Limits::default() };
    let served = start(only(&person, "alice", Role::Reader), limits).await.unwrap();
    let mut first = connect(&served, &person).await.unwrap();
    let second = connect(&served, &person).await;
    assert!(second.as_ref().is_err_and(ClientError::is_transient), "{second:?}");
    first.status().await.unwrap();
    drop(first);
    let again = async {
        while connect(&served, &person).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, again).await.expect("a closed connection frees its place");
}

#[tokio::test]
async fn nobody_there_is_told_apart_from_closed_and_from_not_tls() {
    let person = Identity::generate().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let closing = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let pin = person.pin();
    let closed = Client::connect(&endpoint, pin, &person).await;
    assert!(matches!(closed, Err(ClientError::Closed { .. })), "{closed:?}");
    let not_tls = Client::connect(&endpoint, pin, &person).await;
    assert!(matches!(not_tls, Err(ClientError::Tls { .. })), "{not_tls:?}");
    closing.await.unwrap();
    let nobody = Client::connect(&endpoint, pin, &person).await;
    assert!(matches!(nobody, Err(ClientError::Connect { .. })), "{nobody:?}");
}

#[tokio::test]
async fn logs_give_the_last_lines_in_order() {
    let (served, person) = served(Role::Reader).await;
    served.machine.state().lines = (0..5).map(|n| LogLine { unix_usec: n, text: format!("line {n}") }).collect();
    let mut client = connect(&served, &person).await.unwrap();
    let batches: Vec<_> = client.logs("kernel", 2, false).await.unwrap().collect().await;
    let lines: Vec<_> = batches.into_iter().flat_map(Result::unwrap).map(|line| line.text).collect();
    assert_eq!(lines, ["line 3", "line 4"]);
    let unknown = client.logs("nothing", 1, false).await.err();
    assert!(matches!(unknown, Some(ClientError::NotFound { .. })), "{unknown:?}");
}

#[tokio::test]
async fn what_is_not_there_yet_is_worth_a_retry() {
    let (served, person) = served(Role::Admin).await;
    served.machine.state().kubeconfig = None;
    let mut client = connect(&served, &person).await.unwrap();
    let error = client.kubeconfig().await.unwrap_err();
    assert!(error.is_transient() && error.to_string() == "the machine waits for its clock", "{error}");
}

#[tokio::test]
async fn a_stopped_server_ends() {
    let (served, _) = served(Role::Admin).await;
    let Served { task, stop, .. } = served;
    drop(stop);
    timeout(LIMIT, task).await.expect("the server ends").unwrap().unwrap();
}
