//! Client and server over a real socket, with a loop that answers as it is told.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use garboard_control::server::{Access, Refusal, Request, Server, listen};
use garboard_control::{Client, LogLine, LogSource, MachineInfo, MachinePhase, ShutdownKind, Upkeep};
use garboard_supervisor::spec::ServiceName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// What a test holds of a running server; dropped, the server is gone.
struct Running {
    phase: watch::Sender<MachinePhase>,
    requests: mpsc::Receiver<Request>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(path: &Path) -> Running {
    let (sender, requests) = mpsc::channel(4);
    let (phase, phases) = watch::channel(MachinePhase::Running);
    let (_, services) = watch::channel(Vec::new());
    let listener = listen(path, 0o600, 0).unwrap();
    let task = tokio::spawn(Server::new(Access::Full, sender, services, phases).run(listener));
    Running { phase, requests, task }
}

fn name(name: &str) -> ServiceName {
    ServiceName::try_from(name).unwrap()
}

#[tokio::test]
async fn refusals_are_told_from_failures() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let client = Client::at(&path).unwrap();
    let error = client.get_machine().await.unwrap_err();
    assert!(error.is_retryable() && !error.is_refusal(), "nobody listens: {error}");
    let mut running = start(&path);
    let service = name("a");
    let (answer, request) = tokio::join!(client.restart_service(&service), async {
        match running.requests.recv().await {
            Some(Request::RestartService { name, reply }) => reply.send(Err(Refusal::NoSuchService(name))),
            other => panic!("{other:?}"),
        }
    });
    request.unwrap();
    let error = answer.unwrap_err();
    assert!(error.is_refusal() && !error.is_retryable(), "{error}");
    assert_eq!(error.to_string(), "RestartService failed: there is no service a");
}

#[tokio::test]
async fn a_client_outlives_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let client = Client::at(&path).unwrap();
    for version in ["1", "2"] {
        let mut running = start(&path);
        let answer = async {
            // The first call after the other side has gone may be the one that notices.
            loop {
                match client.get_machine().await {
                    Ok(machine) => return machine,
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            }
        };
        let serve = async {
            while let Some(request) = running.requests.recv().await {
                if let Request::GetMachine { reply } = request {
                    let _ = reply.send(MachineInfo { version: version.to_owned(), ..MachineInfo::default() });
                }
            }
        };
        let machine = tokio::select! {
            machine = answer => machine,
            () = serve => panic!("the server has ended"),
        };
        assert_eq!(machine.version, version);
    }
}

#[tokio::test]
async fn phases_are_watched_and_lines_are_streamed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let client = Client::at(&path).unwrap();
    let mut running = start(&path);
    let mut phases = client.watch_machine().await.unwrap();
    assert_eq!(phases.next().await.unwrap().unwrap(), MachinePhase::Running);
    let stopping = MachinePhase::Stopping { kind: ShutdownKind::Halt };
    running.phase.send_replace(stopping);
    assert_eq!(phases.next().await.unwrap().unwrap(), stopping);

    let source = LogSource::Service(name("a"));
    let (stream, lines) = tokio::join!(client.logs(&source, 7, true), async {
        match running.requests.recv().await {
            Some(Request::Logs { source: LogSource::Service(service), lines: 7, follow: true, reply }) => {
                assert_eq!(service, name("a"));
                let (sender, receiver) = mpsc::channel(1);
                reply.send(Ok(receiver)).unwrap();
                sender
            }
            other => panic!("{other:?}"),
        }
    });
    let line = LogLine { unix_usec: 1, text: "hello".to_owned() };
    lines.send(line.clone()).await.unwrap();
    let mut stream = stream.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), line);
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), lines.closed()).await.expect("the reader's end is noticed");
}

#[tokio::test]
async fn what_is_configured_arrives_and_what_could_not_be_done_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let client = Client::at(&path).unwrap();
    let mut running = start(&path);
    let wanted = Upkeep { watchdog_seconds: None, log_file_bytes: 1 << 20, log_files: 2 };
    let (answer, ()) = tokio::join!(client.configure(&wanted), async {
        match running.requests.recv().await {
            Some(Request::Configure { upkeep, reply }) => {
                assert_eq!(upkeep, wanted);
                reply.send(Ok(vec!["no".to_owned()])).unwrap();
            }
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(answer.unwrap(), ["no"]);
}
