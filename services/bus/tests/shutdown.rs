//! The bus between a client that calls what kubelet calls and the control server of PID 1.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use garboard_bus::{Paths, run};
use garboard_control::server::{Access, Request, Server, listen};
use garboard_control::{MachinePhase, ShutdownKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zbus::fdo::DBusProxy;
use zbus::{Connection, OwnedFd, connection, proxy};

const LIMIT: Duration = Duration::from_secs(20);
const PREPARING: MachinePhase = MachinePhase::PreparingShutdown { kind: ShutdownKind::Reboot, deadline_ms: 1 };

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn delay_inhibited(&self) -> zbus::Result<String>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

/// PID 1 as far as it has inhibitors and phases, and the bus.
struct Scene {
    directory: tempfile::TempDir,
    phase: watch::Sender<MachinePhase>,
    held: Arc<Mutex<BTreeMap<u32, String>>>,
    bus: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (requests, receiver) = mpsc::channel(8);
        let (phase, phases) = watch::channel(MachinePhase::Running);
        let (_, services) = watch::channel(Vec::new());
        let listener = listen(&directory.path().join("inhibit.sock"), 0o600, 0).unwrap();
        tokio::spawn(Server::new(Access::Inhibit, requests, services, phases).run(listener));
        let held = Arc::default();
        tokio::spawn(answer(receiver, Arc::clone(&held)));
        let mut scene = Self { directory, phase, held, bus: None };
        scene.start().await;
        scene
    }

    fn paths(&self) -> Paths {
        Paths { bus: self.directory.path().join("bus"), inhibit: self.directory.path().join("inhibit.sock") }
    }

    async fn start(&mut self) {
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let (paths, stopping) = (self.paths(), stop.clone());
        let bus = tokio::spawn(async move {
            run(paths, stopping, || {
                ready.send(()).unwrap();
                Ok(())
            })
            .await
            .unwrap();
        });
        within(is_ready).await.unwrap();
        self.bus = Some((stop, bus));
    }

    async fn stop(&mut self) {
        let (stop, bus) = self.bus.take().unwrap();
        stop.cancel();
        within(bus).await.unwrap();
    }

    async fn client(&self) -> Connection {
        let address = format!("unix:path={}", self.paths().bus.display());
        within(connection::Builder::address(&*address).build()).await.unwrap()
    }

    async fn holders(&self, expected: &[&str]) {
        let found = || self.held.lock().unwrap().values().cloned().collect::<Vec<_>>() == expected;
        within(async {
            while !found() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn answer(mut requests: mpsc::Receiver<Request>, held: Arc<Mutex<BTreeMap<u32, String>>>) {
    let mut number = 0;
    while let Some(request) = requests.recv().await {
        let Request::Inhibit { who, why: _, held: released, reply } = request else { panic!("{request:?}") };
        reply.send(Ok(Duration::from_secs(120))).unwrap();
        number += 1;
        held.lock().unwrap().insert(number, who);
        let held = Arc::clone(&held);
        tokio::spawn(async move {
            let _ = released.await;
            held.lock().unwrap().remove(&number);
        });
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("takes too long")
}

#[tokio::test]
async fn kubelet_delays_a_shutdown_until_it_closes_its_descriptor() {
    let scene = Scene::new().await;
    scene.holders(&[]).await;
    let client = scene.client().await;
    let manager = ManagerProxy::new(&client).await.unwrap();
    assert_eq!(manager.inhibit_delay_max_usec().await.unwrap(), 120_000_000, "what PID 1 says");
    assert!(!manager.preparing_for_shutdown().await.unwrap());

    let lock: std::os::fd::OwnedFd = manager.inhibit("shutdown", "kubelet", "pods end", "delay").await.unwrap().into();
    scene.holders(&["kubelet"]).await;
    let (uid, pid) = (0, std::process::id());
    let text = |text: &str| text.to_owned();
    let entry = (text("shutdown"), text("kubelet"), text("pods end"), text("delay"), uid, pid);
    assert_eq!(manager.list_inhibitors().await.unwrap(), [entry]);
    assert_eq!(manager.delay_inhibited().await.unwrap(), "shutdown");

    let mut signals = manager.receive_prepare_for_shutdown().await.unwrap();
    scene.phase.send_replace(PREPARING);
    let signal = within(signals.next()).await.unwrap();
    assert!(*signal.args().unwrap().start());
    scene.holders(&["kubelet"]).await;
    let copy = lock.try_clone().unwrap();
    drop(lock);
    tokio::task::yield_now().await;
    scene.holders(&["kubelet"]).await;
    drop(copy);
    scene.holders(&[]).await;
    assert_eq!(manager.delay_inhibited().await.unwrap(), "");
}

#[tokio::test]
async fn a_phase_is_announced_once_and_its_end_too() {
    let scene = Scene::new().await;
    let client = scene.client().await;
    let manager = ManagerProxy::new(&client).await.unwrap();
    let mut signals = manager.receive_prepare_for_shutdown().await.unwrap();
    for (phase, start) in [(PREPARING, true), (MachinePhase::Running, false), (PREPARING, true)] {
        scene.phase.send_replace(phase);
        let signal = within(signals.next()).await.unwrap();
        assert_eq!(*signal.args().unwrap().start(), start);
    }
    scene.phase.send_replace(MachinePhase::Stopping { kind: ShutdownKind::Reboot });
    scene.phase.send_replace(MachinePhase::Running);
    let signal = within(signals.next()).await.unwrap();
    assert!(!*signal.args().unwrap().start(), "stopping after preparing is no news");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    let scene = Scene::new().await;
    let client = scene.client().await;
    let manager = ManagerProxy::new(&client).await.unwrap();
    for (what, mode) in [("sleep", "delay"), ("shutdown:sleep", "delay"), ("shutdown", "block"), ("", "")] {
        let error = manager.inhibit(what, "kubelet", "", mode).await.unwrap_err();
        assert!(error.to_string().contains("only shutdown can be inhibited"), "{what:?} {mode:?}: {error}");
    }
    let mut signals = manager.receive_prepare_for_shutdown().await.unwrap();
    scene.phase.send_replace(PREPARING);
    within(signals.next()).await.unwrap();
    let error = manager.inhibit("shutdown", "late", "", "delay").await.unwrap_err();
    assert!(error.to_string().contains("OperationInProgress"), "{error}");
    scene.holders(&[]).await;
}

#[tokio::test]
async fn a_client_that_dies_holds_nothing() {
    let scene = Scene::new().await;
    let client = scene.client().await;
    let lock = ManagerProxy::new(&client).await.unwrap().inhibit("shutdown", "a", "", "delay").await.unwrap();
    scene.holders(&["a"]).await;
    client.close().await.unwrap();
    scene.holders(&["a"]).await;
    drop(lock);
    scene.holders(&[]).await;
}

#[tokio::test]
async fn nobody_but_the_bus_is_logind() {
    let scene = Scene::new().await;
    let client = scene.client().await;
    let bus = DBusProxy::new(&client).await.unwrap();
    let owner = bus.get_name_owner("org.freedesktop.login1".try_into().unwrap()).await.unwrap();
    let result = client.request_name("org.freedesktop.login1").await;
    assert!(result.is_err(), "{result:?}");
    assert_eq!(bus.get_name_owner("org.freedesktop.login1".try_into().unwrap()).await.unwrap(), owner);
    let mode = std::fs::metadata(scene.paths().bus).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "busd has no policy, so the socket is for root and the bus's user alone");
}

#[tokio::test]
async fn a_restarted_bus_lets_go_and_serves_again() {
    let mut scene = Scene::new().await;
    let client = scene.client().await;
    let lock = ManagerProxy::new(&client).await.unwrap().inhibit("shutdown", "a", "", "delay").await.unwrap();
    scene.holders(&["a"]).await;
    scene.stop().await;
    assert!(!scene.paths().bus.exists());
    scene.start().await;
    let again = scene.client().await;
    let manager = ManagerProxy::new(&again).await.unwrap();
    drop(lock);
    let _lock = manager.inhibit("shutdown", "b", "", "delay").await.unwrap();
    scene.holders(&["b"]).await;
}
