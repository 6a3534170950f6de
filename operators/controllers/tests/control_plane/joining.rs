//! A machine joins, by the agent's own tasks against the real API server.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use garboard_api::machine::MachineRole::{self, ControlPlane, Worker};
use garboard_api::manifest::JoinToken;
use garboard_api::{Cluster, Machine, MachinePool, PublicKeyPin, REGISTRIES_NAMESPACE};
use garboard_api_client::{Identity, Outage};
use garboard_catalog::kubeconfig::APISERVERS;
use garboard_catalog::pki::Leaf;
use garboard_control::Client as Control;
use garboard_controllers::certificates::{Certificates, Due};
use garboard_controllers::join::{Introduction, Join, TokenFile, issue_token};
use garboard_controllers::network::NodeAddresses;
use garboard_controllers::pki::PkiStore;
use garboard_controllers::problems::{Listed, Problems};
use garboard_controllers::registries::{Registries, RegistryPaths};
use garboard_controllers::removed_machines::{Change, RemovedMachines};
use garboard_controllers::{addons, csr, revocations};
use garboard_plan::dispute::ASK_AGAIN;
use garboard_plan::join::KEY;
use garboard_plan::pki::{Authority, of_worker};
use garboard_sys::durable::power::Supply;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::twins;
use crate::world::World;

const HOUR: Duration = Duration::from_secs(3600);
const NOBODYS: &str = "abcdef.0123456789abcdef";
/// The address that machines say they have.
pub const SECOND: &str = "192.0.2.2";

/// A machine that is to join: its own disk and memory, and its tasks.
pub struct Joiner {
    pub machine: Machine,
    /// Identifies its installation.
    pub machine_id: String,
    pki: PkiStore,
    folder: String,
}

/// How a try to join has ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Joined,
    /// And why not.
    NotJoined(String),
    /// The power went.
    Dark,
}

impl Joiner {
    /// One that knows a cluster by this pin.
    pub fn new(name: &str, role: MachineRole, pin: PublicKeyPin) -> Self {
        let machine = json!({
            "apiVersion": garboard_api::API_VERSION,
            "kind": "Machine",
            "metadata": { "name": name },
            "spec": { "role": role, "join": { "endpoints": [{ "host": "127.0.0.1" }], "caPin": pin } },
        });
        let folder = tempfile::tempdir_in("/run/state").unwrap().keep().to_str().unwrap().to_owned();
        fs::create_dir(format!("{folder}/state")).unwrap();
        let pki = Self::store(&folder);
        static MADE: AtomicU64 = AtomicU64::new(1);
        let machine_id = format!("{:032x}", MADE.fetch_add(1, Ordering::Relaxed));
        Self { machine: serde_json::from_value(machine).unwrap(), machine_id, pki, folder }
    }

    fn store(folder: &str) -> PkiStore {
        PkiStore::new(format!("{folder}/state/pki"), format!("{folder}/run"))
    }

    /// The same machine when it has been started again: with its disk, and nothing else.
    fn started_again(&self) -> Self {
        let _ = fs::remove_dir_all(format!("{}/run", self.folder));
        Self {
            machine: self.machine.clone(),
            machine_id: self.machine_id.clone(),
            pki: Self::store(&self.folder),
            folder: self.folder.clone(),
        }
    }

    /// What lasts.
    fn disk(&self) -> PathBuf {
        format!("{}/state", self.folder).into()
    }

    fn token_file(&self) -> PathBuf {
        self.disk().join("join-token")
    }

    fn name(&self) -> String {
        self.machine.name_any()
    }

    /// Runs the task that joins, with a token; gives what it says: joined, or why not.
    pub async fn join(&self, token: &str) -> Result<(), String> {
        match self.try_to_join(Some(token), None).await {
            Outcome::Joined => Ok(()),
            Outcome::NotJoined(problem) => Err(problem),
            Outcome::Dark => panic!("the power went"),
        }
    }

    /// The same with the token that lies with its manifests, or the one that it has kept, until the power goes.
    async fn try_to_join(&self, token: Option<&str>, supply: Option<&Supply>) -> Outcome {
        let (_keep, machine) = watch::channel(Some(Arc::new(self.machine.clone())));
        let file = Arc::new(TokenFile::new(&self.token_file()));
        let (join, mut joined, mut told) = self.task(machine, &file, token);
        let has_gone = || supply.is_some_and(Supply::has_gone);
        if has_gone() {
            return Outcome::Dark;
        }
        if token.is_some() {
            assert_eq!(fs::metadata(self.token_file()).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let stop = CancellationToken::new();
        let outcome = async {
            tokio::select! {
                joined = joined.wait_for(|joined| *joined) => { joined.unwrap(); Outcome::Joined }
                problem = told.wait_for(|told| told.contains_key("join")) => {
                    Outcome::NotJoined(problem.unwrap()["join"].clone())
                }
            }
        };
        let outcome = tokio::select! {
            () = join.run(stop.clone()) => panic!("the task has ended"),
            outcome = tokio::time::timeout(Duration::from_secs(60), outcome) => outcome.expect("an outcome"),
        };
        if has_gone() {
            return Outcome::Dark;
        }
        assert_eq!(self.token_file().exists(), outcome != Outcome::Joined, "a token that has served is forgotten");
        outcome
    }

    /// The task that joins, and what it tells: whether the machine has joined, and why not.
    fn task(
        &self,
        machine: watch::Receiver<Option<Arc<Machine>>>,
        file: &Arc<TokenFile>,
        token: Option<&str>,
    ) -> (Join, watch::Receiver<bool>, watch::Receiver<Listed>) {
        let (problems, told) = Problems::new();
        let given = token.map(|token| self.given(token));
        let addresses = vec![SECOND.parse().unwrap()];
        let (_, network) = watch::channel(NodeAddresses { addresses, ..NodeAddresses::default() });
        let introduction = Introduction {
            machine_id: self.machine_id.clone(),
            // Copied manifests bring the same key along.
            fingerprint: PublicKeyPin::new([7; 32]),
            network,
        };
        let (join, joined) = Join::new(machine, introduction, self.pki.clone(), file.clone(), given.as_ref(), problems);
        (join, joined, told)
    }

    fn given(&self, token: &str) -> JoinToken {
        JoinToken { machine: self.name(), token: token.to_owned() }
    }

    /// A client with what it has got.
    pub fn client(&self) -> Client {
        let read = |file: &str| fs::read_to_string(format!("{}/run/agent/{file}", self.folder)).unwrap();
        let identity = Identity::from_pem(&read("ca.crt"), &read("tls.crt"), &read("tls.key")).unwrap();
        garboard_api_client::client(APISERVERS.parse().unwrap(), identity, Outage::default())
    }
}

pub async fn a_machine_joins_once_and_changes_only_what_is_its_own(world: &World, client: &Client) {
    assert!(addons::keep_worker_roles(client).await.unwrap() > 0);
    assert_eq!(addons::keep_worker_roles(client).await.unwrap(), 0, "nothing differs after the first time");
    let stop = CancellationToken::new();
    let operators = world.client(Leaf::Operators);
    let removed = Arc::new(RemovedMachines::new(operators.clone()));
    let duty = tokio::spawn(csr::run(operators, removed, stop.clone()));

    let pin = pin_of(&world.pki);
    let token = async |machine: &str| token(world, machine, Worker).await;
    let first = token("node-2").await;

    // Another cluster with the same address gets no token.
    let stranger = Joiner::new("node-2", Worker, PublicKeyPin::new([7; 32]));
    let problem = stranger.join(&first).await.unwrap_err();
    assert!(problem.contains("belongs to another cluster"), "{problem}");

    let worker = Joiner::new("node-2", Worker, pin);
    worker.join(&first).await.unwrap();
    let secrets = Api::<Secret>::namespaced(client.clone(), "kube-system");
    let secret = format!("bootstrap-token-{}", first.split_once('.').unwrap().0);
    assert!(secrets.get(&secret).await.unwrap().annotations().contains_key(KEY), "the token is not the machine's");

    // Another machine of the same name with the same token, which has served.
    let problem = Joiner::new("node-2", Worker, pin).join(&first).await.unwrap_err();
    assert!(problem.contains("used before"), "{problem}");
    // A token of another machine, and one that nobody made.
    let thief = Joiner::new("node-4", Worker, pin);
    for (token, said) in
        [(token("node-3").await, "node-3 may ask for"), (NOBODYS.to_owned(), "does not know the token")]
    {
        let problem = thief.join(&token).await.unwrap_err();
        assert!(problem.contains(said), "{problem}");
    }

    // One whose time is over, also before the cluster has cleaned up.
    let before = SystemTime::now() - Duration::from_secs(90);
    let (expired, _) = issue_token(&world.pki, "node-4", Worker, Duration::from_secs(60), before).await.unwrap();
    let problem = thief.join(&expired).await.unwrap_err();
    assert!(problem.contains("it has expired"), "{problem}");

    let own = worker.client();
    it_changes_its_own_machine_and_no_other(&own, &worker.machine).await;
    it_touches_its_own_node_and_endpoint_and_no_other(client, &own).await;
    it_gets_its_own_certificates_and_no_other(&worker, &own).await;
    twins::another_machine_of_its_name_is_refused(world, client, &worker, &first, pin).await;
    twins::of_two_that_come_at_once_one_is_let_in(world, pin).await;
    twins::two_machines_that_run_as_one_notice_each_other(world, &worker).await;
    let everything = ListParams::default();
    assert!(Api::<Secret>::all(own.clone()).list(&everything).await.is_err(), "a worker reads secrets");
    assert!(Api::<Pod>::all(own.clone()).list(&everything).await.is_err(), "a worker reads pods");

    it_uses_credentials_of_registries(world, client, &own).await;

    it_may_do_nothing_once_it_is_removed(world, &worker, client).await;

    a_control_plane_machine_gets_the_clusters_keys(world, client, pin).await;
    a_mistake_is_mended_by_another_claim(world, pin).await;
    a_power_cut_at_any_step_needs_no_second_token(world, pin).await;

    Api::<Machine>::all(client.clone()).delete("node-2", &Default::default()).await.unwrap();
    Api::<Node>::all(client.clone()).delete("node-2", &Default::default()).await.unwrap();
    stop.cancel();
    duty.await.unwrap();
}

pub async fn token(world: &World, machine: &str, role: MachineRole) -> String {
    issue_token(&world.pki, machine, role, HOUR, SystemTime::now()).await.unwrap().0
}

/// And nobody else does, whatever else of its token he has.
async fn a_control_plane_machine_gets_the_clusters_keys(world: &World, client: &Client, pin: PublicKeyPin) {
    let secrets = Api::<Secret>::namespaced(client.clone(), "kube-system");
    let joiner = Joiner::new("node-5", ControlPlane, pin);
    let problem = joiner.join(&token(world, "node-5", Worker).await).await.unwrap_err();
    assert!(problem.contains("--control-plane"), "{problem}");

    let first = token(world, "node-5", ControlPlane).await;
    let (bearer, _) = first.rsplit_once('.').unwrap();
    let sealed = secrets.get(&format!("garboard-keys-{}", &first[..6])).await.unwrap();
    // Who says that he is that machine.
    let stranger = Joiner { machine_id: joiner.machine_id.clone(), ..Joiner::new("node-5", ControlPlane, pin) };
    let problem = stranger.join(&format!("{bearer}.{}", "0".repeat(64))).await.unwrap_err();
    assert!(problem.contains("do not open"), "{problem}");
    assert!(!stranger.pki.has_cluster_keys().unwrap());
    let problem = joiner.join(&first).await.unwrap_err();
    assert!(problem.contains("used before"), "{problem}");

    let second = token(world, "node-5", ControlPlane).await;
    joiner.join(&second).await.unwrap();
    assert_eq!(joiner.pki.cluster_keys().unwrap(), world.pki.cluster_keys().unwrap());
    let gone = format!("garboard-keys-{}", &second[..6]);
    assert!(secrets.get_opt(&gone).await.unwrap().is_none(), "what was fetched is still there");
    let others = Api::<Secret>::namespaced(joiner.client(), "kube-system");
    assert!(others.get(&sealed.name_any()).await.is_ok(), "what was sealed for this machine before");
    let foreign = token(world, "node-6", ControlPlane).await;
    assert!(others.get(&format!("garboard-keys-{}", &foreign[..6])).await.is_err(), "another machine's keys");
    assert!(others.list(&ListParams::default()).await.is_err(), "an agent lists secrets");
}

/// At every step of what a machine writes: it joins with the token that it has, or with the key that it has shown with it.
async fn a_power_cut_at_any_step_needs_no_second_token(world: &World, pin: PublicKeyPin) {
    let began = Instant::now();
    // The token, the authority, the key of the request, the certificate, the end of the token and of the key; and the cluster's keys.
    for (role, least) in [(Worker, 20), (ControlPlane, 30)] {
        let mut cuts = 0;
        loop {
            let name = format!("{}-{cuts}", if role == Worker { "dark" } else { "dark-control" });
            let token = token(world, &name, role).await;
            let machine = Joiner::new(&name, role, pin);
            let supply = Supply::cut(&machine.disk(), cuts);
            let outcome = machine.try_to_join(Some(&token), Some(&supply)).await;
            let gone = supply.has_gone();
            drop(supply);
            if !gone {
                assert_eq!(outcome, Outcome::Joined);
                assert!(cuts >= least, "{role:?}: {cuts} cuts");
                eprintln!("{cuts} power cuts of a {role:?}: {:.1} s", began.elapsed().as_secs_f32());
                break;
            }
            let again = machine.started_again();
            // What lies with the manifests is there again; what was handed over is not.
            let lost = !again.token_file().exists() && !again.pki.deploy_valid(Leaf::Agent, SystemTime::now()).unwrap();
            let again = again.started_again();
            let outcome = again.try_to_join(lost.then_some(token.as_str()), None).await;
            assert_eq!(outcome, Outcome::Joined, "{role:?} after cut {cuts}");
            Api::<Node>::all(again.client()).list(&ListParams::default()).await.unwrap();
            let kept = fs::read_dir(again.disk().join("pki")).unwrap().map(|file| file.unwrap().file_name());
            let requests = kept.filter(|name| name.to_string_lossy().ends_with(".request.key")).count();
            assert_eq!(requests, 0, "{role:?} after cut {cuts}: a key that has served is forgotten");
            if role == ControlPlane {
                assert_eq!(again.pki.cluster_keys().unwrap(), world.pki.cluster_keys().unwrap(), "after cut {cuts}");
            }
            cuts += 1;
        }
    }
}

/// Who has claimed a machine claims it again with what was mistaken, and it does not wait until it would have asked again.
async fn a_mistake_is_mended_by_another_claim(world: &World, pin: PublicKeyPin) {
    let joiner = Joiner::new("node-7", Worker, PublicKeyPin::new([7; 32]));
    let mended = Joiner::new("node-7", Worker, pin).machine;
    let (machine, seen) = watch::channel(Some(Arc::new(joiner.machine.clone())));
    let file = Arc::new(TokenFile::new(&joiner.token_file()));
    let (join, mut joined, mut told) = joiner.task(seen, &file, Some(&token(world, "node-3", Worker).await));
    let task = tokio::spawn(join.run(CancellationToken::new()));
    let claims = async {
        let is_told =
            |text: &'static str| move |told: &Listed| told.get("join").is_some_and(|problem| problem.contains(text));
        told.wait_for(is_told("belongs to another cluster")).await.unwrap();
        machine.send_replace(Some(Arc::new(mended)));
        told.wait_for(is_told("node-3 may ask for")).await.unwrap();
        file.keep(&joiner.given(&token(world, "node-7", Worker).await)).unwrap();
        joined.wait_for(|joined| *joined).await.unwrap();
        told.wait_for(|told| !told.contains_key("join")).await.unwrap();
    };
    tokio::time::timeout(ASK_AGAIN / 2, claims).await.expect("a machine that joins at once");
    task.abort();
}

/// What the cluster is known by.
fn pin_of(pki: &PkiStore) -> PublicKeyPin {
    let pem = pki.authority_certificate(Authority::Kubernetes).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let key = block.parse_x509().unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().raw);
    PublicKeyPin::new(digest.as_ref().try_into().unwrap())
}

async fn it_changes_its_own_machine_and_no_other(own: &Client, machine: &Machine) {
    let machines = Api::<Machine>::all(own.clone());
    machines.create(&PostParams::default(), machine).await.unwrap();
    let status = json!({ "status": { "phase": "Running" } });
    machines.patch_status("node-2", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let mut other = machine.clone();
    other.metadata.name = Some("node-3".to_owned());
    let refused = machines.create(&PostParams::default(), &other).await.unwrap_err().to_string();
    assert!(refused.contains("a worker changes only what is its own"), "{refused}");
    assert!(machines.delete("node-2", &Default::default()).await.is_err());
    // Pools tell it what to follow, and it does not tell them whom to name.
    let pools = Api::<MachinePool>::all(own.clone());
    pools.list(&ListParams::default()).await.unwrap();
    let named = json!({ "status": { "rollout": { "generation": 1, "template": "", "machines": ["node-2"] } } });
    assert!(pools.patch_status("workers", &PatchParams::default(), &Patch::Merge(&named)).await.is_err());
}

async fn it_touches_its_own_node_and_endpoint_and_no_other(client: &Client, own: &Client) {
    let all = Api::<Node>::all(client.clone());
    let node = serde_json::from_value(json!({ "metadata": { "name": "node-2" } })).unwrap();
    all.create(&PostParams::default(), &node).await.unwrap();
    let nodes = Api::<Node>::all(own.clone());
    let label = json!({ "metadata": { "labels": { "example.org/rack": "7" } } });
    nodes.patch("node-2", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let refused = nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap_err().to_string();
    assert!(refused.contains("a worker changes only what is its own"), "{refused}");

    let slices = Api::<EndpointSlice>::namespaced(own.clone(), "kube-system");
    let slice = |name: &str, serves: &str| -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "kube-dns" } },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["10.244.1.1"],
                "nodeName": "node-2",
                "hints": { "forNodes": [{ "name": serves }] },
            }],
        })
    };
    let parameters = PatchParams::apply("test");
    slices.patch("kube-dns-node-2", &parameters, &Patch::Apply(slice("kube-dns-node-2", "node-2"))).await.unwrap();
    for (name, serves) in [("kube-dns-node-2", "node-1"), ("kube-dns-node-1", "node-2"), ("kubernetes", "node-2")] {
        let refused = slices.patch(name, &parameters.clone().force(), &Patch::Apply(slice(name, serves))).await;
        assert!(refused.unwrap_err().to_string().contains("a worker"), "{name} for {serves}");
    }
}

async fn it_gets_its_own_certificates_and_no_other(worker: &Joiner, own: &Client) {
    let (due, seen) = watch::channel(Due { machine: worker.name(), leaves: of_worker("node-2") });
    let (certificates, mut outcome) = Certificates::new(worker.pki.clone(), seen);
    let (_keep, api) = watch::channel(Some(own.clone()));
    let stop = CancellationToken::new();
    let task = tokio::spawn(certificates.run(api, stop.clone()));
    // Each is told of when it is there.
    let leaves = || Vec::from_iter(worker.pki.observe().unwrap().leaves.into_keys());
    while leaves() != Leaf::OF_WORKERS {
        outcome.changed().await.unwrap();
        assert_eq!(*outcome.borrow_and_update(), BTreeMap::new());
    }

    // Somebody else's.
    let mut leaves = of_worker("node-1");
    leaves.retain(|leaf, _| *leaf == Leaf::Kubelet);
    due.send_replace(Due { machine: worker.name(), leaves });
    let denied = outcome.wait_for(|failed| failed.contains_key("kubelet")).await.unwrap()["kubelet"].clone();
    assert!(denied.contains("system:node:node-1") && denied.contains("node-2 may ask for"), "{denied}");
    stop.cancel();
    task.await.unwrap();
}

/// As they come and go, and says what is wrong with those that cannot be used.
async fn it_uses_credentials_of_registries(world: &World, administrator: &Client, own: &Client) {
    let folder = tempfile::tempdir().unwrap();
    let paths = RegistryPaths { kept: folder.path().join("kept"), config: folder.path().join("home/config.json") };
    let (_keep, config) = watch::channel(Some([("registry.example".to_owned(), "keel".to_owned())].into()));
    let (_keep, api) = watch::channel(Some(own.clone()));
    let (_keep, services) = watch::channel(Arc::default());
    let (registries, problems) = Registries::new(config, api, services, Control::new().unwrap(), paths.clone());
    let stop = CancellationToken::new();
    let task = tokio::spawn(registries.run(stop.clone()));

    let secrets = Api::<Secret>::namespaced(administrator.clone(), REGISTRIES_NAMESPACE);
    let secret = |type_: &str, server: &str| -> Secret {
        let config = json!({ "auths": { server: { "username": "keel", "password": "s3cret" } } }).to_string();
        let data = json!({ ".dockerconfigjson": config });
        let metadata = json!({ "name": "keel" });
        serde_json::from_value(json!({ "metadata": metadata, "type": type_, "stringData": data })).unwrap()
    };
    let docker = "kubernetes.io/dockerconfigjson";
    let cases = [
        (None, Some("there is none")),
        (Some(secret("Opaque", "registry.example")), Some("it is of type Opaque")),
        (Some(secret(docker, "other.example")), Some("not among its servers: other.example")),
        (Some(secret(docker, "registry.example")), None),
        (None, Some("there is none")),
    ];
    for (secret, problem) in cases {
        let _ = secrets.delete("keel", &Default::default()).await;
        if let Some(secret) = &secret {
            secrets.create(&PostParams::default(), secret).await.unwrap();
        }
        let told = || async {
            let told = problems.borrow().clone();
            let as_expected = problem.map_or(told.is_empty(), |problem| told.iter().any(|told| told.contains(problem)));
            (as_expected && paths.config.exists() == problem.is_none()).then_some(())
        };
        world.wait_for(problem.unwrap_or("credentials for kubelet"), told).await;
    }
    let everywhere = Api::<Secret>::namespaced(own.clone(), "kube-system");
    assert!(everywhere.list(&ListParams::default()).await.is_err(), "a worker reads other secrets");
    stop.cancel();
    task.await.unwrap();
}

/// What is valid by its dates counts no longer, and counts again when a machine of this name is let in.
async fn it_may_do_nothing_once_it_is_removed(world: &World, worker: &Joiner, administrator: &Client) {
    let as_leaf = |leaf: Leaf| {
        let read = |file: &str| fs::read_to_string(format!("{}/run/{}/{file}", worker.folder, leaf.name())).unwrap();
        let identity = Identity::from_pem(&read("ca.crt"), &read("tls.crt"), &read("tls.key")).unwrap();
        garboard_api_client::client(APISERVERS.parse().unwrap(), identity, Outage::default())
    };
    let everything = ListParams::default();
    let own = worker.client();
    let (kubelet, proxy, dns) = (as_leaf(Leaf::Kubelet), as_leaf(Leaf::KubeProxy), as_leaf(Leaf::Dns));
    let may = async || {
        let kubelet = Api::<Node>::all(kubelet.clone()).get_opt("node-2").await.is_ok();
        let slices = async |client: &Client| Api::<EndpointSlice>::all(client.clone()).list(&everything).await.is_ok();
        [
            Api::<Machine>::all(own.clone()).list(&everything).await.is_ok(),
            kubelet,
            slices(&proxy).await,
            slices(&dns).await,
        ]
    };
    assert_eq!(may().await, [true; 4]);
    for (removed, expected) in [(Some("node-2"), [false; 4]), (Some("node-9"), [true; 4]), (None, [true; 4])] {
        revocations::write(removed.into_iter()).unwrap();
        world.wait_for("the authorizers to count", || async { (may().await == expected).then_some(()) }).await;
        // Nobody else has to do with it.
        Api::<Machine>::all(administrator.clone()).list(&everything).await.unwrap();
        Api::<Service>::all(world.client(Leaf::KubeProxy)).list(&everything).await.unwrap();
    }

    // The record of it, as the operators keep it.
    let cluster: Cluster = serde_json::from_value(json!({
        "apiVersion": garboard_api::API_VERSION, "kind": "Cluster", "metadata": { "name": "cluster" }, "spec": {},
    }))
    .unwrap();
    let clusters = Api::<Cluster>::all(administrator.clone());
    let made = clusters.create(&PostParams::default(), &cluster).await;
    let record = RemovedMachines::new(world.client(Leaf::Operators));
    record.record("node-2", Change::Removed).await.unwrap();
    let recorded = clusters.get("cluster").await.unwrap().status.unwrap().removed_machines;
    assert_eq!(recorded.iter().map(|one| one.machine.as_str()).collect::<Vec<_>>(), ["node-2"]);
    record.record("node-2", Change::Readmitted).await.unwrap();
    assert_eq!(clusters.get("cluster").await.unwrap().status.unwrap().removed_machines, []);
    if made.is_ok() {
        clusters.delete("cluster", &Default::default()).await.unwrap();
    }
}
