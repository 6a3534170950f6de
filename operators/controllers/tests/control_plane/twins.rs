//! Two machines under one name, by the agent's and the operators' own tasks against the real API server.

use std::sync::Arc;
use std::time::Duration;

use garboard_api::condition::{self, UNDISPUTED};
use garboard_api::machine::MachineRole::Worker;
use garboard_api::{Machine, MachineStatus, PublicKeyPin, Refusals};
use garboard_catalog::pki::Leaf;
use garboard_controllers::disputes;
use garboard_controllers::twin::{Pace, TwinView, TwinWatch};
use garboard_runtime::ledger::Ledger;
use garboard_runtime::source::Source;
use garboard_runtime::status::StatusSink;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::joining::{Joiner, SECOND, token};
use crate::world::World;

/// For as long a refusal is told here. Times of requests are kept in whole seconds.
const KEPT: Duration = Duration::from_secs(5);
const PACE: Pace = Pace { pause: Duration::from_millis(300), quiet: Duration::from_secs(2) };

/// With the token that has let the first one in and with another, and the first one's Machine tells it while it lasts; when that one is
/// away, another may come in its place.
pub async fn another_machine_of_its_name_is_refused(
    world: &World,
    client: &Client,
    first: &Joiner,
    spent: &str,
    pin: PublicKeyPin,
) {
    let machines = Api::<Machine>::all(client.clone());
    let status = MachineStatus {
        machine_id: Some(first.machine_id.clone()),
        fingerprint: Some(PublicKeyPin::new([7; 32]).to_string()),
        ..MachineStatus::default()
    };
    let status = json!({ "status": status });
    machines.patch_status("node-2", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let is_ready = async |status: &str| {
        let nodes = Api::<Node>::all(client.clone());
        let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
        nodes.patch_status("node-2", &PatchParams::default(), &Patch::Strategic(&ready)).await.unwrap();
    };
    is_ready("True").await;
    let stop = CancellationToken::new();
    let duty = tokio::spawn(disputes::run(world.client(Leaf::Operators), KEPT, stop.clone()));

    let second = Joiner::new("node-2", Worker, pin);
    let fresh = token(world, "node-2", Worker).await;
    let told = || async {
        let found = machines.get("node-2").await.unwrap().status.unwrap().conditions;
        condition::find(&found, UNDISPUTED).cloned()
    };
    for token in [spent, &fresh] {
        let problem = second.join(token).await.unwrap_err();
        for said in ["Denied", &first.machine_id, "kubectl delete machine node-2"] {
            assert!(problem.contains(said), "{said}: {problem}");
        }
        let told = world.wait_for("the dispute to be told", told).await;
        assert_eq!((told.status.as_str(), told.reason.as_str()), (condition::FALSE, "AnotherMachine"));
        for named in [&second.machine_id, &PublicKeyPin::new([7; 32]).to_string(), SECOND] {
            assert!(told.message.contains(named), "{named}: {}", told.message);
        }
        let over = || async { told_nothing(&machines).await };
        world.wait_for("the dispute to be over", over).await;
    }
    let events = Api::<Event>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    let recorded = events.iter().find(|event| event.reason.as_deref() == Some("AnotherMachineRefused")).unwrap();
    assert_eq!(recorded.regarding.as_ref().unwrap().name.as_deref(), Some("node-2"));
    assert!(recorded.note.as_ref().unwrap().contains(&second.machine_id));

    // One of an operator that leads no more is found by the next.
    second.join(spent).await.unwrap_err();
    world.wait_for("the dispute to be told", told).await;
    stop.cancel();
    duty.await.unwrap();
    let stop = CancellationToken::new();
    let duty = tokio::spawn(disputes::run(world.client(Leaf::Operators), Duration::ZERO, stop.clone()));
    world.wait_for("the dispute to be over", || async { told_nothing(&machines).await }).await;

    is_ready("False").await;
    let problem = second.join(spent).await.unwrap_err();
    assert!(problem.contains("kubectl delete machine"), "{problem}");
    second.join(&fresh).await.unwrap();
    stop.cancel();
    duty.await.unwrap();
}

/// Each with a token of its own, and before either has told that it is there.
pub async fn of_two_that_come_at_once_one_is_let_in(world: &World, pin: PublicKeyPin) {
    let [one, other] = [(); 2].map(|()| Joiner::new("node-10", Worker, pin));
    let tokens = [token(world, "node-10", Worker).await, token(world, "node-10", Worker).await];
    let outcomes = tokio::join!(one.join(&tokens[0]), other.join(&tokens[1]));
    let (first, problem) = match outcomes {
        (Ok(()), Err(problem)) => (one, problem),
        (Err(problem), Ok(())) => (other, problem),
        both => panic!("{both:?}"),
    };
    assert!(problem.contains(&first.machine_id), "{problem}");
}

/// What others tell of the machine stays.
async fn told_nothing(machines: &Api<Machine>) -> Option<()> {
    let status = machines.get("node-2").await.unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    condition::find(&status.conditions, UNDISPUTED).is_none().then_some(())
}

/// One start of a machine: what its agent has of these tasks.
struct Start {
    view: watch::Receiver<TwinView>,
    notables: mpsc::Receiver<garboard_plan::events::Notable>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _folder: TempDir,
}

impl Start {
    /// The start with this id of a machine with the keys of `machine`.
    fn new(machine: &Joiner, boot_id: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (api, api_seen) = watch::channel(Some(machine.client()));
        let (refusals, _) = watch::channel(Refusals::new());
        let ledger = Ledger::new(folder.path().join("ledger"));
        let (source, declared, mut events) =
            Source::start(ledger, Some(&machine.machine), refusals, api_seen.clone()).unwrap();
        let statuses = Arc::new(StatusSink::new(folder.path().join("status"), api_seen));
        let (sender, notables) = mpsc::channel(8);
        let (twins, view) = TwinWatch::new(declared.clone(), statuses.clone(), boot_id, PACE, sender);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(source.run(stop.clone()));
        tasks.spawn(twins.run(stop.clone()));
        tasks.spawn(async move { while events.recv().await.is_some() {} });
        let status = MachineStatus {
            boot_id: Some(boot_id.to_owned()),
            machine_id: Some(machine.machine_id.clone()),
            fingerprint: Some(PublicKeyPin::new([7; 32]).to_string()),
            ..MachineStatus::default()
        };
        let (mut again, mut object, ended) = (view.clone(), declared.object, stop.clone());
        tasks.spawn(async move {
            let _keep = api;
            let publish = async {
                loop {
                    let machine = object.borrow_and_update().clone().unwrap();
                    statuses.publish(&*machine, &status).await.unwrap();
                    tokio::select! {
                        Ok(()) = again.changed() => {}
                        Ok(()) = object.changed() => {}
                        else => return,
                    }
                }
            };
            ended.run_until_cancelled(publish).await;
        });
        Self { view, notables, stop, tasks, _folder: folder }
    }

    fn twin(&self) -> Option<String> {
        self.view.borrow().twin.as_ref().map(|twin| twin.boot_id.clone())
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// And notice that there is one again. A reboot is no second machine.
pub async fn two_machines_that_run_as_one_notice_each_other(world: &World, machine: &Joiner) {
    let machines = Api::<Machine>::all(machine.client());
    let shows = async |boot_id: &str| {
        let shown = || async {
            let status = machines.get(&machine.machine.name_any()).await.unwrap().status;
            (status.unwrap().boot_id.as_deref() == Some(boot_id)).then_some(())
        };
        world.wait_for(&format!("the status of {boot_id}"), shown).await;
    };
    let before = Start::new(machine, "before");
    shows("before").await;
    before.end().await;
    let mut first = Start::new(machine, "first");
    shows("first").await;
    assert_eq!(first.twin(), None);

    let mut copy = Start::new(machine, "copy");
    for (start, twin) in [(&mut first, "copy"), (&mut copy, "first")] {
        let noticed = || async { (start.twin().as_deref() == Some(twin)).then_some(()) };
        world.wait_for(&format!("{twin} to be noticed"), noticed).await;
        assert_eq!(start.notables.recv().await.unwrap().reason, "TwoMachines");
    }
    copy.end().await;
    world.wait_for("the copy to be forgotten", || async { first.twin().is_none().then_some(()) }).await;
    assert_eq!(first.notables.recv().await.unwrap().reason, "OneMachine");
    shows("first").await;
    first.end().await;
}
