//! The whole way: client, TLS, this service, the control socket, and a PID 1 that is played here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures::StreamExt;
use garboard_api::{PublicKeyPin, manifest};
use garboard_catalog::EtcdSource;
use garboard_control::server::{self as control, Refusal};
use garboard_control::{MachineInfo, MachinePhase};
use garboard_machine_api::client::{Client, ClientError};
use garboard_machine_api::proto::etcd_restore_request::Source;
use garboard_machine_api::proto::{AppliedObject, EtcdOwnData, EtcdRestoreRequest, EtcdSetAside};
use garboard_machine_api::testing::only;
use garboard_supervisor::status::{PublicState, ServiceStatus};
use garboard_supervisor::testing::status;
use garboard_tpm::testing::Emulator;
use garboard_tpm::{Endorsement, Tpm};
use tokio::net::TcpListener;

use super::*;
use crate::claim::Claims;
use crate::endorsement::{self, ProofError};
use crate::etcd::restore::{Ask, Folders};
use crate::pki::PkiStore;
use garboard_plan::pki::Desired;

const UPTIME_MS: u64 = 10_000;

fn etcd() -> ServiceStatus {
    ServiceStatus {
        since_ms: 9_000,
        restarts: 2,
        crash_looping: true,
        message: "old words".into(),
        last_lines: vec!["disk full".into()],
        ..status("etcd", PublicState::BackOff { until_ms: 12_000, reason: "exited with 1".into() })
    }
}

/// Plays PID 1: answers, and writes down what it was told.
async fn pid_1(mut requests: mpsc::Receiver<control::Request>, told: Arc<Mutex<Vec<String>>>) {
    while let Some(request) = requests.recv().await {
        let tell = |what: String| told.lock().unwrap().push(what);
        match request {
            control::Request::ListServices { reply } => drop(reply.send(vec![etcd()])),
            control::Request::RestartService { name, reply } => {
                let known = name.as_str() == "etcd";
                tell(format!("restart {name}"));
                drop(reply.send(if known { Ok(()) } else { Err(Refusal::NoSuchService(name)) }));
            }
            control::Request::Logs { source, lines, follow: _, reply } => {
                let (sender, receiver) = mpsc::channel(4);
                tell(format!("logs {source:?} {lines}"));
                drop(reply.send(Ok(receiver)));
                for n in 0..200 {
                    let line = garboard_control::LogLine { unix_usec: n, text: format!("line {n}") };
                    drop(sender.send(line).await);
                }
            }
            control::Request::Shutdown { kind, reason, reply } => {
                tell(format!("{kind:?} {reason}"));
                let _ = reply.send(());
            }
            control::Request::GetMachine { reply } => {
                let problems = vec!["DATA is not mounted".to_owned()];
                let info = MachineInfo { boot_id: "boot".into(), uptime_ms: UPTIME_MS, problems, ..Default::default() };
                drop(reply.send(info));
            }
            other => panic!("not asked for here: {other:?}"),
        }
    }
}

struct Scene {
    client: Client,
    pin: Pin,
    told: Arc<Mutex<Vec<String>>>,
    view: watch::Sender<View>,
    declared: mpsc::Receiver<Declare>,
    /// The restores that are asked for.
    asked: mpsc::Receiver<Ask>,
    /// The machine's own key.
    own: String,
    directory: tempfile::TempDir,
    _served: watch::Sender<AccessList>,
    _control: (watch::Sender<Vec<ServiceStatus>>, watch::Sender<MachinePhase>),
}

async fn scene(role: Role) -> Scene {
    scene_with(role, None).await
}

/// On a machine with this TPM.
async fn scene_with(role: Role, tpm: Option<Tpm>) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let (requests, received) = mpsc::channel(8);
    let (services, watched_services) = watch::channel(Vec::new());
    let (phase, watched_phase) = watch::channel(MachinePhase::Running);
    let server = control::Server::new(control::Access::Full, requests, watched_services, watched_phase);
    tokio::spawn(server.run(control::listen(&socket, 0o600, 0).unwrap()));
    let told = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(pid_1(received, told.clone()));

    let (view, watched) = watch::channel(View::default());
    let (declare, declared) = mpsc::channel(1);
    let pki = PkiStore::new(directory.path().join("pki"), directory.path().join("deployed"));
    let (machine, person) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let own = machine.pem();
    let (asks, asked) = mpsc::channel(1);
    let folders = Folders { data: directory.path().join("etcd"), restore: directory.path().join("etcd-restore") };
    let service = Service::new(
        garboard_control::Client::at(&socket).unwrap(),
        watched,
        pki,
        declare,
        mpsc::channel(1).0,
        Restoring::new(asks, folders),
        machine.pin(),
    )
    .with_tpm(tpm);
    let (access, list) = watch::channel(only(&person, "alice", role));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let pin = machine.pin();
    tokio::spawn(async move {
        serve(listener, &machine, list, Limits::default(), service, std::future::pending()).await.unwrap();
    });
    let client = Client::connect(&endpoint, pin, &person).await.unwrap();
    Scene { client, pin, told, view, declared, asked, own, directory, _served: access, _control: (services, phase) }
}

fn declared(access: &str) -> View {
    let text = format!(
        "apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: cluster}}\nspec: {{access: [{access}]}}\n---\n\
         apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {{name: node-1}}\n"
    );
    let read = manifest::parse(&text).unwrap();
    let mut view = View { machine: read.machine, cluster: read.cluster, problems: vec!["a bad manifest".into()] };
    if let Some(machine) = &mut view.machine {
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        machine.status = Some(garboard_api::MachineStatus { addresses, ..Default::default() });
    }
    view
}

#[tokio::test]
async fn services_say_how_long_and_why() {
    let mut scene = scene(Role::Reader).await;
    let services = scene.client.services().await.unwrap();
    let etcd = services.first().unwrap();
    assert_eq!((etcd.state.as_str(), etcd.message.as_str()), ("BackOff", "exited with 1"));
    assert_eq!((etcd.in_state_ms, etcd.retry_in_ms, etcd.pid), (1_000, 2_000, 0));
}

#[tokio::test]
async fn status_has_the_problems_of_pid_1_and_of_the_agent() {
    let mut scene = scene(Role::Reader).await;
    assert_eq!(scene.client.status().await.unwrap().api_endpoint, "");
    scene.view.send_replace(declared(""));
    let status = scene.client.status().await.unwrap();
    assert_eq!(status.problems, ["DATA is not mounted", "a bad manifest"]);
    assert_eq!((status.machine.as_str(), status.phase.as_str()), ("node-1", "Running"));
    assert_eq!(status.api_endpoint, "https://192.0.2.1:6443");
}

#[tokio::test]
async fn what_is_to_happen_reaches_pid_1_with_the_callers_name() {
    let mut scene = scene(Role::Operator).await;
    scene.client.restart_service("etcd").await.unwrap();
    let unknown = scene.client.restart_service("nothing").await;
    assert!(matches!(unknown, Err(ClientError::NotFound { .. })), "{unknown:?}");
    let invalid = scene.client.restart_service("../etcd").await;
    assert!(matches!(invalid, Err(ClientError::Invalid { .. })), "{invalid:?}");
    scene.client.reboot("new\nkernel").await.unwrap();
    scene.client.shutdown("").await.unwrap();
    let told = scene.told.lock().unwrap().clone();
    let expected = [
        "restart etcd",
        "restart nothing",
        "Reboot asked for by alice over the machine API: newkernel",
        "PowerOff asked for by alice over the machine API",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn all_lines_of_a_log_come_in_order() {
    let mut scene = scene(Role::Reader).await;
    let batches: Vec<_> = scene.client.logs("kernel", 200, false).await.unwrap().collect().await;
    let lines: Vec<_> = batches.into_iter().flat_map(Result::unwrap).map(|line| line.unix_usec).collect();
    assert_eq!(lines, (0..200).collect::<Vec<_>>());
    assert_eq!(scene.told.lock().unwrap().as_slice(), ["logs Kernel 200"]);
}

#[tokio::test]
async fn a_kubeconfig_is_signed_for_the_callers_key_and_role() {
    for (role, group) in [(Role::Admin, "garboard:admins"), (Role::Operator, "garboard:readers")] {
        let mut scene = scene(role).await;
        let early = scene.client.kubeconfig().await.unwrap_err();
        assert!(early.is_transient(), "{early}");
        scene.view.send_replace(declared(""));
        let early = scene.client.kubeconfig().await.unwrap_err();
        assert!(early.is_transient() && early.to_string().contains("keys are not made"), "{early}");
        let pki = PkiStore::new(scene.directory.path().join("pki"), scene.directory.path().join("deployed"));
        pki.reconcile(&Desired { creates: true, signs: true, leaves: BTreeMap::new() }, SystemTime::now()).unwrap();
        let answer = scene.client.kubeconfig().await.unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(answer.certificate.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        let subject = certificate.subject().to_string();
        assert!(subject.contains("CN=alice") && subject.contains(&format!("O={group}")), "{subject}");
        assert_eq!(answer.not_after_unix_ms, certificate.validity().not_after.timestamp() * 1000);
        assert_eq!(answer.server, "https://192.0.2.1:6443");
        assert_eq!(answer.ca, pki.authority_certificate(garboard_plan::pki::Authority::Kubernetes).unwrap());
    }
}

#[tokio::test]
async fn manifests_are_validated_before_the_agent_sees_them() {
    let mut scene = scene(Role::Admin).await;
    for (manifest, named) in [
        ("kind: [", "manifest"),
        ("", "nothing"),
        ("apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {name: a}\nspec: {hostnam: b}\n", "hostnam"),
    ] {
        let error = scene.client.apply_manifest(manifest.to_owned(), false).await.unwrap_err();
        assert!(matches!(error, ClientError::Invalid { .. }) && error.to_string().contains(named), "{error}");
    }
    let agent = tokio::spawn(async move {
        let Declare { manifests, claimant, dry_run, reply } = scene.declared.recv().await.unwrap();
        assert!(manifests.machine.is_some() && claimant.is_none() && dry_run);
        let object = AppliedObject { kind: "Machine".into(), name: "a".into(), outcome: "created".into() };
        reply.send(Ok(vec![object])).unwrap();
        scene.declared.recv().await.unwrap().reply.send(Err("podCIDR cannot be changed".into())).unwrap();
    });
    let valid = "apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {name: a}\n";
    let objects = scene.client.apply_manifest(valid.to_owned(), true).await.unwrap();
    assert_eq!(objects.first().unwrap().outcome, "created");
    let error = scene.client.apply_manifest(valid.to_owned(), false).await.unwrap_err();
    assert!(error.to_string().contains("podCIDR cannot be changed"), "{error}");
    agent.await.unwrap();
}

#[test]
fn who_may_use_a_machine_follows_from_what_is_declared_and_from_who_has_claimed_it() {
    let [person, claimant] = [b"person", b"claims"].map(|key| Pin::of_public_key(key));
    let entry = |name: &str| format!("{{name: {name}, role: admin, publicKey: '{person}'}}");
    let nothing = View::default();
    let joins = |access: &str| {
        let join = format!("endpoints: [{{host: 192.0.2.1}}], caPin: '{claimant}', access: [{access}]");
        let text = format!(
            "apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {{name: node-2}}\nspec: {{role: Worker, join: {{{join}}}}}\n"
        );
        View { machine: manifest::parse(&text).unwrap().machine, ..View::default() }
    };
    let (admin, only) = (Some(Role::Admin), Claimants::Only(claimant));
    // What the person may do, and what who claims it.
    for (what, view, claimants, expected) in [
        ("nothing is declared", nothing.clone(), Claimants::Nobody, None),
        ("it waits", nothing.clone(), Claimants::Anybody, Some((Some(Role::Claimant), Some(Role::Claimant)))),
        ("it is about to be declared", nothing, only, Some((None, Some(Role::Claimant)))),
        ("it joins", joins(""), Claimants::Nobody, None),
        ("it joins, and was claimed", joins(""), only, Some((None, Some(Role::Reader)))),
        ("it joins, and names people", joins(&entry("own")), Claimants::Nobody, Some((admin, None))),
        ("all of that", joins(&entry("own")), only, Some((admin, Some(Role::Reader)))),
        ("it is one of a cluster", declared(&entry("its")), only, Some((admin, Some(Role::Claimant)))),
        ("whose list is empty", declared(""), Claimants::Nobody, Some((None, None))),
    ] {
        let (_keep, view) = watch::channel(view);
        let (_keep, claimants) = watch::channel(claimants);
        let list = Admission { view, claimants }.access_list();
        let role = |list: &AccessList, pin| list.get(pin).map(|access| access.role);
        assert_eq!(list.map(|list| (role(&list, &person), role(&list, &claimant))), expected, "{what}");
    }
}

#[tokio::test]
async fn the_port_opens_when_a_cluster_says_who_may_connect_and_follows_its_changes() {
    let scene = scene(Role::Reader).await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let (requests, received) = mpsc::channel(8);
    let (_services, watched_services) = watch::channel(Vec::new());
    let (_phase, watched_phase) = watch::channel(MachinePhase::Running);
    let server = control::Server::new(control::Access::Full, requests, watched_services, watched_phase);
    tokio::spawn(server.run(control::listen(&socket, 0o600, 0).unwrap()));
    tokio::spawn(pid_1(received, scene.told.clone()));
    let (view, watched) = watch::channel(View::default());
    let (declare, _declared) = mpsc::channel(1);
    let pki = PkiStore::new(directory.path(), directory.path());
    let machine = Identity::generate().unwrap();
    let control = garboard_control::Client::at(&socket).unwrap();
    let restoring = Restoring::new(mpsc::channel(1).0, Folders::default());
    let own = machine.pin();
    let service = Service::new(control, watched.clone(), pki, declare, mpsc::channel(1).0, restoring, own);
    let (_claims, claimants) = Claims::new(&directory.path().join("claimant"), false, true);
    let admission = Admission { view: watched, claimants };
    let (pin, stop) = (machine.pin(), CancellationToken::new());
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { run_on(port, &machine, service, admission, stop).await }
    });
    let person = Identity::generate().unwrap();
    let refused = Client::connect(&endpoint, pin, &person).await;
    assert!(matches!(refused, Err(ClientError::Connect { .. })), "{refused:?}");
    let entry = format!("{{name: bob, role: reader, publicKey: '{}'}}", person.pin());
    view.send_replace(declared(&entry));
    let connected = async {
        loop {
            match Client::connect(&endpoint, pin, &person).await {
                Ok(client) => break client,
                Err(error) if error.is_transient() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let limit = std::time::Duration::from_secs(30);
    let client = tokio::time::timeout(limit, connected).await.expect("the port opens");
    assert_eq!(client.version().caller_name, "bob");
    view.send_replace(declared(""));
    let gone = async {
        while !matches!(Client::connect(&endpoint, pin, &person).await, Err(ClientError::UnknownKey { .. })) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limit, gone).await.expect("the new list counts");
    stop.cancel();
    drop(client);
    tokio::time::timeout(limit, running).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_secret_with_the_machines_own_key_changes_nothing_and_another_is_refused() {
    let mut scene = scene(Role::Admin).await;
    let secret = |key: &str| {
        let key: String = key.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: node-1}}\ntype: garboard.dev/machine-identity\n\
             stringData:\n  identity.key: |\n{key}"
        )
    };
    let own = secret(&scene.own);
    let objects = scene.client.apply_manifest(own.clone(), false).await.unwrap();
    let unchanged = AppliedObject { kind: "Secret".into(), name: "node-1".into(), outcome: "unchanged".into() };
    assert_eq!(objects, std::slice::from_ref(&unchanged));
    let other = Identity::generate().unwrap();
    let error = scene.client.apply_manifest(secret(&other.pem()), false).await.unwrap_err().to_string();
    assert!(error.contains("node-1") && error.contains(&other.pin().to_string()), "{error}");

    let agent = tokio::spawn(async move {
        let Declare { reply, .. } = scene.declared.recv().await.unwrap();
        reply.send(Ok(Vec::new())).unwrap();
    });
    let machine = "apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {name: node-1}\n";
    let objects = scene.client.apply_manifest(format!("{machine}---\n{own}"), false).await.unwrap();
    assert_eq!(objects, [unchanged]);
    agent.await.unwrap();
}

fn snapshot() -> Vec<u8> {
    let content = vec![7; 4096];
    [content.as_slice(), ring::digest::digest(&ring::digest::SHA256, &content).as_ref()].concat()
}

async fn restore(scene: &mut Scene, sources: Vec<Source>) -> Result<Vec<String>, ClientError> {
    let sources = sources.into_iter().map(|source| EtcdRestoreRequest { source: Some(source) });
    let steps = scene.client.etcd_restore(futures::stream::iter(Vec::from_iter(sources)).boxed()).await?;
    steps.collect::<Vec<_>>().await.into_iter().collect()
}

#[tokio::test]
async fn a_whole_snapshot_is_handed_on_and_its_steps_are_told() {
    let mut scene = scene(Role::Admin).await;
    scene.view.send_replace(declared(""));
    let pieces = snapshot().chunks(1000).map(|piece| Source::Piece(piece.to_vec())).collect();
    let (_, kept) = mpsc::channel(1);
    let mut asked = std::mem::replace(&mut scene.asked, kept);
    let agent = tokio::spawn(async move {
        let Ask { source, progress } = asked.recv().await.unwrap();
        progress.send(Ok("it begins".into())).await.unwrap();
        source
    });
    let steps = restore(&mut scene, pieces).await.unwrap();
    assert_eq!((steps, agent.await.unwrap()), (vec!["it begins".to_owned()], EtcdSource::Snapshot));
    assert_eq!(std::fs::read(scene.directory.path().join("etcd-restore/snapshot.db")).unwrap(), snapshot());
}

#[tokio::test]
async fn what_is_no_whole_snapshot_is_refused_before_anything_changes() {
    let mut scene = scene(Role::Admin).await;
    scene.view.send_replace(declared(""));
    let mut damaged = snapshot();
    damaged[100] = 8;
    let piece = |bytes: &[u8]| vec![Source::Piece(bytes.to_vec())];
    for (sources, word) in [
        (piece(&snapshot()[..4000]), "cut off"),
        (piece(&damaged), "damaged"),
        ([piece(&snapshot()), vec![Source::OwnData(EtcdOwnData {})]].concat(), "followed by pieces only"),
        (vec![Source::OwnData(EtcdOwnData {})], "has no data"),
        (vec![Source::SetAside(EtcdSetAside {})], "no restore has set data aside"),
        (vec![], "give one of"),
    ] {
        let refused = restore(&mut scene, sources).await;
        assert!(matches!(&refused, Err(ClientError::Invalid { message }) if message.contains(word)), "{refused:?}");
        assert!(!scene.directory.path().join("etcd-restore/snapshot.db").exists(), "{word}");
    }
    assert!(scene.asked.try_recv().is_err());
}

#[tokio::test]
async fn without_etcd_its_calls_say_so() {
    let mut scene = scene(Role::Admin).await;
    let silent = scene.client.etcd_members().await;
    assert!(
        matches!(&silent, Err(ClientError::NotYet { message }) if message.contains("etcd does not serve")),
        "{silent:?}"
    );
}

#[tokio::test]
async fn whoever_may_claim_a_machine_gets_proof_of_its_tpm() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let key = |tpm: Tpm| PublicKeyPin::new(tpm.endorsement_key().unwrap().digest());
    let mut scene = scene_with(Role::Claimant, Some(one.tpm())).await;
    endorsement::verify(&mut scene.client, scene.pin, key(one.tpm())).await.unwrap();
    let another = endorsement::verify(&mut scene.client, scene.pin, key(other.tpm())).await;
    assert!(matches!(another, Err(ProofError::Another(_))), "{another:?}");
    // As if this one were asked by a machine that passes on what it answers.
    let passed_on = Identity::generate().unwrap().pin();
    let relayed = endorsement::verify(&mut scene.client, passed_on, key(one.tpm())).await;
    assert!(matches!(relayed, Err(ProofError::Wrong)), "{relayed:?}");
    let invalid = scene.client.prove_endorsement(vec![4; 7]).await;
    assert!(matches!(invalid, Err(ClientError::Invalid { .. })), "{invalid:?}");
}

#[tokio::test]
async fn a_machine_that_only_names_a_tpm_proves_nothing() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let named = one.tpm().endorsement().unwrap();
    let (_, question) = garboard_tpm::Challenge::new(&named, b"context").unwrap();
    let mut scene = scene_with(Role::Claimant, Some(other.tpm())).await;
    let refused = scene.client.prove_endorsement(question.to_bytes()).await.unwrap_err();
    assert!(refused.to_string().contains("another TPM"), "{refused}");
    let told = Endorsement::try_from(scene.client.endorsement().await.unwrap().as_slice()).unwrap();
    assert_ne!(told, named);
    let mut without = scene_with(Role::Claimant, None).await;
    let refused = without.client.endorsement().await.unwrap_err();
    assert!(refused.to_string().contains("no TPM"), "{refused}");
}
