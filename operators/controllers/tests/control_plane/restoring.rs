//! The store is made anew, by the agent's own task, with a PID 1 that is played here.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::Machine;
use garboard_catalog::etcd::local_url;
use garboard_catalog::{EtcdRestore, EtcdSource, etcd_restore, services, users};
use garboard_controllers::etcd::restore::{Ask, Folders, Restores};
use garboard_controllers::etcd::{Etcd, Membership};
use garboard_controllers::network::NodeAddresses;
use garboard_controllers::problems::{Listed, Problems};
use garboard_etcd_client::Client;
use garboard_machine_api::snapshot::Check;
use garboard_runtime::ledger::Ledger;
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::{PublicState, ServiceStatus};
use garboard_supervisor::testing;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::world::{self, World};

/// What uses the store here.
const STORE: [&str; 2] = ["etcd", "kube-apiserver"];

/// The agent's task, and what the rest of the agent and PID 1 do for it.
struct Agent {
    asks: mpsc::Sender<Ask>,
    stage: watch::Receiver<Option<EtcdRestore>>,
    specs: watch::Sender<Arc<Vec<ServiceSpec>>>,
    services: watch::Sender<Arc<Vec<ServiceStatus>>>,
    membership: watch::Receiver<Membership>,
    problems: watch::Receiver<Listed>,
    stop: CancellationToken,
}

impl Agent {
    fn new() -> Self {
        let (_, machine) = watch::channel(Some(Arc::new(Machine::new("node-1", Default::default()))));
        let (services, statuses) = watch::channel(Arc::default());
        let (specs, specs_seen) = watch::channel(Arc::default());
        let (problems, problems_seen) = Problems::new();
        let (api, network) = (watch::channel(None).1, watch::channel(NodeAddresses::default()).1);
        let ledger = Ledger::new("/run/state/ledger");
        let (etcd, (membership, _)) = Etcd::new(machine, api, network, statuses, ledger, problems, "boot");
        let (restores, stage) = Restores::new(&etcd, specs_seen, Folders::default());
        let (asks, asked) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            restores.run(asked, stopped).await;
            drop(etcd);
        });
        Self { asks, stage, specs, services, membership, problems: problems_seen, stop }
    }

    /// Does what the machine's reconciler and PID 1 do: runs what is to run at the current stage, and says so.
    async fn serve(&self, world: &mut World) {
        world.input.node.etcd.as_mut().unwrap().restore = self.stage.borrow().clone();
        let specs = services(&world.input).unwrap();
        let wanted = |name: &str| specs.iter().any(|spec| spec.name.as_str() == name);
        for name in world.started() {
            if !wanted(&name) {
                world.stop(&name);
            }
        }
        for name in STORE.into_iter().chain([etcd_restore::NAME]) {
            if wanted(name) && !world.started().iter().any(|started| started == name) {
                world.start(name);
            }
        }
        self.specs.send_replace(Arc::new(specs));
        let names = world.started();
        let mut statuses = vec![status("data", PublicState::Finished)];
        for name in names {
            let state = match (name.as_str(), world.ended(&name)) {
                (etcd_restore::NAME, Some(true)) => PublicState::Finished,
                (etcd_restore::NAME, Some(false)) => PublicState::Failed { reason: "exited with 1".to_owned() },
                _ => PublicState::Running { ready: true },
            };
            statuses.push(status(&name, state));
        }
        self.services.send_replace(Arc::new(statuses));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Has the store made anew; returns why it was not.
    async fn restore(&self, world: &mut World, source: EtcdSource) -> Result<(), String> {
        let (progress, mut steps) = mpsc::channel(8);
        self.asks.send(Ask { source, progress }).await.unwrap();
        loop {
            self.serve(world).await;
            match steps.try_recv() {
                Ok(Ok(step)) => eprintln!("{step}"),
                Ok(Err(why)) => return Err(why),
                Err(mpsc::error::TryRecvError::Empty) => {}
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Runs what is to run until the API server serves.
    async fn until_served(&self, world: &mut World) {
        self.serve(world).await;
        world.wait("the API server", || world.ready("https://127.0.0.1:6443/readyz")).await;
    }
}

/// A service in a state; a one-shot that has succeeded is ready.
fn status(name: &str, state: PublicState) -> ServiceStatus {
    let finished = state == PublicState::Finished;
    let status = testing::status(name, state);
    ServiceStatus { ready: finished || status.ready, ..status }
}

#[test]
fn the_store_is_made_anew_and_nothing_of_it_is_lost() {
    world::inside("restoring::the_store_is_made_anew_and_nothing_of_it_is_lost", || async {
        let mut world = World::new();
        let agent = Agent::new();
        agent.until_served(&mut world).await;
        let maps = Api::<ConfigMap>::namespaced(world.administrator(), "default");
        write(&world, &maps, "before").await;

        fs::create_dir("/var/lib/etcd-restore").unwrap();
        take_snapshot(Path::new(etcd_restore::SNAPSHOT)).await;
        let (members, revision) = look().await;
        write(&world, &maps, "after").await;
        maps.delete("before", &DeleteParams::default()).await.unwrap();

        agent.restore(&mut world, EtcdSource::Snapshot).await.unwrap();
        agent.until_served(&mut world).await;
        assert_eq!(names(&world, &maps).await, ["before"], "what was there when the snapshot was taken");
        let (alone, later) = look().await;
        assert_eq!((members.len(), alone.len(), alone[0].name.as_str()), (1, 1, "node-1"));
        assert_ne!(members[0].id, alone[0].id, "those of the store before do not take it for their own");
        assert!(later > revision + 1_000_000_000, "no revision comes again: {later}");
        assert!(agent.membership.borrow().votes && !agent.membership.borrow().others);

        // What was in its place is kept, and comes back.
        agent.restore(&mut world, EtcdSource::SetAside).await.unwrap();
        agent.until_served(&mut world).await;
        assert_eq!(names(&world, &maps).await, ["after"]);
        agent.restore(&mut world, EtcdSource::OwnData).await.unwrap();
        agent.until_served(&mut world).await;
        assert_eq!(names(&world, &maps).await, ["after"]);
        assert!(agent.problems.borrow().is_empty());

        // What is no snapshot changes nothing.
        fs::write(etcd_restore::SNAPSHOT, vec![7; 4096 + 32]).unwrap();
        let why = agent.restore(&mut world, EtcdSource::Snapshot).await.unwrap_err();
        assert!(why.contains("could not be made"), "{why}");
        assert!(!agent.problems.borrow().is_empty());
        agent.until_served(&mut world).await;
        assert_eq!(names(&world, &maps).await, ["after"]);
        agent.stop.cancel();
    });
}

async fn write(world: &World, maps: &Api<ConfigMap>, name: &str) {
    let map: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    world.wait_for(name, || async { maps.create(&PostParams::default(), &map).await.ok() }).await;
}

/// The test's own objects.
async fn names(world: &World, maps: &Api<ConfigMap>) -> Vec<String> {
    let all = world.wait_for("the objects", || async { maps.list(&Default::default()).await.ok() }).await;
    let names = all.items.into_iter().filter_map(|map| map.metadata.name);
    names.filter(|name| ["before", "after"].contains(&name.as_str())).collect()
}

async fn look() -> (Vec<garboard_etcd_client::Member>, i64) {
    let mut etcd = Client::connect(&local_url()).await.unwrap();
    (etcd.members().await.unwrap(), etcd.health().await.unwrap().revision)
}

async fn take_snapshot(path: &Path) {
    let mut snapshot = Client::connect(&local_url()).await.unwrap().snapshot().await.unwrap();
    let (mut content, mut check) = (Vec::new(), Check::default());
    while let Some((piece, _)) = snapshot.next().await.unwrap() {
        check.update(&piece);
        content.extend(piece);
    }
    check.finish().unwrap();
    fs::write(path, content).unwrap();
    // What the machine API does with what it is given.
    std::os::unix::fs::chown(path, Some(users::ETCD.id), Some(users::ETCD.id)).unwrap();
}
