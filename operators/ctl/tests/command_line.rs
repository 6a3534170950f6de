//! The program against the machine API's real server with a machine in memory behind it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use garboard_machine_api::proto::{
    AppliedObject, Condition, EtcdHealth, EtcdMember, EtcdMembersResponse, LogLine, Service, StatusResponse,
};
use garboard_machine_api::testing::only;
use garboard_machine_api::{AccessList, Role};
use serde_json::{Value, json};

use scene::{Scene, garboardctl};

fn service(name: &str, ready: bool) -> Service {
    Service { name: name.into(), state: "Running".into(), ready, pid: 7, in_state_ms: 5_000, ..Service::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_and_the_person_know_each_other_by_what_new_made() {
    let scene = Scene::new().await;
    let version: Value = scene.json(&["version", "-o", "json"]);
    assert_eq!(version["machine"]["caller"], json!({ "name": "admin", "role": "admin" }));
    assert_eq!(version["client"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_a_table_for_people_and_stable_fields_for_programs() {
    let scene = Scene::new().await;
    scene.served.machine.state().services = vec![service("etcd", true), service("kubelet", false)];
    scene.served.machine.state().version.machine = "node-1".into();
    let text = scene.ok(&["services"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("NAME      STATE"), "{text}");
    assert!(lines[1].starts_with("etcd      Running   yes     5s"), "{text}");
    assert!(scene.ok(&["services", "-o", "wide"]).lines().next().unwrap().contains("PID"));
    let expected = json!({
        "machine": "node-1",
        "services": [{
            "name": "etcd", "state": "Running", "ready": true, "pid": 7, "inStateMs": 5000, "restarts": 0,
            "crashLooping": false, "retryInMs": null, "message": "", "waitingOn": [], "lastExit": null, "lastLines": [],
            "memoryBytes": 0, "cpuUsec": 0,
        }],
    });
    scene.served.machine.state().services.truncate(1);
    assert_eq!(scene.json(&["services", "-o", "json"]), expected);
    let yaml: Value = serde_yaml_ng::from_str(&scene.ok(&["services", "-o", "yaml"])).unwrap();
    assert_eq!(yaml, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_conditions_problems_and_what_is_not_ready() {
    let scene = Scene::new().await;
    scene.served.machine.state().services = vec![service("etcd", true), service("kubelet", false)];
    scene.served.machine.state().status = StatusResponse {
        machine: "node-1".into(),
        phase: "Running".into(),
        conditions: vec![Condition {
            kind: "Machine".into(),
            name: "node-1".into(),
            r#type: "Ready".into(),
            status: "False".into(),
            reason: "ServicesNotReady".into(),
            ..Condition::default()
        }],
        problems: vec!["machine.yaml: unknown field hostnam".into()],
        ..StatusResponse::default()
    };
    let text = scene.ok(&["status"]);
    for part in ["node-1, Running", "ServicesNotReady", "kubelet", "1 of 2 ready", "unknown field hostnam"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let status = scene.json(&["status", "-o", "json"]);
    assert_eq!(status["conditions"][0]["type"], "Ready");
    assert_eq!(status["conditions"][0]["since"], Value::Null);
    assert_eq!(status["apiEndpoint"], Value::Null);
    assert_eq!(status["problems"][0], "machine.yaml: unknown field hostnam");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_show_the_last_lines_with_times_on_request() {
    let scene = Scene::new().await;
    scene.served.machine.state().services = vec![service("etcd", true)];
    scene.served.machine.state().lines =
        (0..3).map(|n| LogLine { unix_usec: n * 1_500_000, text: format!("line {n}") }).collect();
    assert_eq!(scene.ok(&["logs", "etcd", "-n", "2"]), "line 1\nline 2\n");
    assert_eq!(scene.ok(&["dmesg", "-t", "-n", "1"]), "1970-01-01T00:00:03.000000Z line 2\n");
    let error = scene.fails(&["logs", "nothing"]);
    assert!(error.contains("nothing") && error.contains("garboardctl services"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_the_machine_reaches_it_under_the_callers_name() {
    let scene = Scene::new().await;
    scene.served.machine.state().services = vec![service("etcd", true)];
    scene.served.machine.state().applied =
        vec![AppliedObject { kind: "Machine".into(), name: "node-1".into(), outcome: "changed".into() }];
    scene.ok(&["service", "restart", "etcd"]);
    scene.ok(&["reboot", "--reason", "new kernel"]);
    scene.ok(&["shutdown"]);
    let manifest = scene.folder().join("machine.yaml");
    let applied = scene.ok(&["apply", "--dry-run", "-f", manifest.to_str().unwrap()]);
    assert!(applied.contains("Machine/node-1") && applied.contains("changed (dry run)"), "{applied}");
    let length = fs::metadata(manifest).unwrap().len();
    let apply = format!("admin ApplyManifest {length} bytes dry_run=true");
    let calls = scene.served.machine.state().calls.clone();
    assert_eq!(calls, ["admin ServiceRestart etcd", "admin Reboot new kernel", "admin Shutdown ", &apply]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_manifest_says_why() {
    let scene = Scene::new().await;
    scene.served.machine.state().refusal = "Cluster/cluster: spec.podCIDR: \"10.244.0.0/99\" is not allowed".into();
    let error = scene.fails(&["apply", "-f", scene.folder().join("cluster.yaml").to_str().unwrap()]);
    assert!(error.contains("spec.podCIDR") && error.contains("10.244.0.0/99"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_what_is_wrong_and_the_way_out() {
    let scene = Scene::new().await;
    let admin = scene.admin();

    scene.served.access.send_replace(only(&admin, "admin", Role::Reader));
    let error = scene.fails(&["reboot"]);
    assert!(error.contains("admin has the role reader") && error.contains("needs the role operator"), "{error}");
    assert!(error.contains("spec.access"), "{error}");

    scene.served.access.send_replace(AccessList::default());
    let error = scene.fails(&["status"]);
    assert!(
        error.contains("does not know the key") && error.contains(&format!("publicKey: {}", admin.pin())),
        "{error}"
    );

    let other = format!("sha256:{}", "0".repeat(64));
    let error = scene.fails(&["status", "--fingerprint", &other]);
    assert!(error.contains(&scene.served.identity.pin().to_string()) && error.contains("console"), "{error}");

    // Bound and not listening: a connection is refused, and nobody else gets the port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = socket.local_addr().unwrap().to_string();
    let error = scene.fails(&["status", "-e", &nobody]);
    assert!(error.contains("refused") && error.contains("may still be starting"), "{error}");
}

#[test]
fn without_a_config_the_way_to_one_is_told() {
    let home = tempfile::tempdir().unwrap();
    let mut command = garboardctl(home.path());
    let output = command.arg("status").current_dir(home.path()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("garboardctl new DIR") && error.contains("--config"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_config_is_found_here_in_the_environment_and_at_home() {
    let scene = Scene::new().await;
    let endpoint = scene.served.endpoint.to_string();
    let home = tempfile::tempdir().unwrap();
    let run = |command: &mut std::process::Command| {
        let output = command.args(["version", "-e", &endpoint]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(garboardctl(home.path()).current_dir(scene.folder()));
    run(garboardctl(home.path()).env("GARBOARDCTL_CONFIG", scene.folder()).current_dir(home.path()));
    run(garboardctl(home.path()).env("GARBOARDCTL_CONFIG", scene.folder().join("config.yaml")).current_dir("/"));
    // Somebody else's config.yaml in the current folder does not hide ours at home.
    fs::write(home.path().join("config.yaml"), "name: another program's\n").unwrap();
    let ours = home.path().join(".config/garboard");
    fs::create_dir_all(&ours).unwrap();
    for file in ["config.yaml", "admin.key"] {
        fs::copy(scene.folder().join(file), ours.join(file)).unwrap();
    }
    run(garboardctl(home.path()).current_dir(home.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_is_private_and_keeps_what_was_there() {
    let scene = Scene::new().await;
    scene.gives_kubeconfig();
    let file = scene.folder().join("kubeconfig");
    fs::write(&file, "apiVersion: v1\nkind: Config\nusers:\n- name: other\n  user: {token: t}\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let path = file.to_str().unwrap();
    for _ in 0..2 {
        scene.ok(&["kubeconfig", "--file", path]);
    }
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let config: Value = serde_yaml_ng::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(config["users"].as_array().unwrap().len(), 2);
    assert_eq!(config["users"][0]["user"]["token"], "t");
    assert_eq!(config["current-context"], scene.context());
    assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:16443");
    let key = fs::read_to_string(scene.folder().join("admin.key")).unwrap();
    assert_eq!(config["users"][1]["user"]["client-key-data"], scene::base64(&key));
    let printed: Value = serde_yaml_ng::from_str(&scene.ok(&["kubeconfig", "-f", "-"])).unwrap();
    assert_eq!(printed["users"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_kubeconfig_tells_what_is_missing_and_ends_when_the_api_server_is_ready() {
    let scene = Scene::new().await;
    let machine = scene.served.machine.clone();
    let mut command = scene.command(&["kubeconfig", "--wait", "60", "-f", "kubeconfig"]);
    let mut waiting = command.current_dir(scene.folder()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut says = |part: &str| said.find(|line| line.contains(part)).unwrap_or_else(|| panic!("never said: {part}"));
    says("the machine waits for its clock");
    machine.state().services = vec![Service {
        state: "Waiting".into(),
        waiting_on: vec!["etcd to be ready".into()],
        ..service("kube-apiserver", false)
    }];
    scene.gives_kubeconfig();
    says("wrote the context lab");
    assert!(scene.folder().join("kubeconfig").exists());
    says("kube-apiserver is Waiting and not ready: waits for etcd to be ready");
    machine.state().services = vec![service("kube-apiserver", true)];
    assert_eq!(said.next(), None);
    assert!(waiting.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_the_limit_and_with_errors_that_time_does_not_mend() {
    let scene = Scene::new().await;
    let error = scene.fails(&["kubeconfig", "--wait", "1", "-f", "-"]);
    assert!(error.contains("not within 1 seconds") && error.contains("waits for its clock"), "{error}");
    scene.served.access.send_replace(AccessList::default());
    let error = scene.fails(&["kubeconfig", "--wait", "3600", "-f", "-"]);
    assert!(error.contains("does not know the key"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_waited_for_by_the_kernels_boot_identifier() {
    let scene = Scene::new().await;
    let machine = scene.served.machine.clone();
    machine.state().status.boot_id = "one".into();
    let waiting = scene.command(&["reboot", "--wait", "60"]).stderr(Stdio::piped()).spawn().unwrap();
    scene::eventually("the reboot", || !machine.state().calls.is_empty()).await;
    machine.state().status.boot_id = "two".into();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_completion_and_the_kubectl_plugin_work_without_any_machine() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = garboardctl(home.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["--help"]).contains("Examples:"));
    assert!(run(&["kubeconfig", "--help"]).contains("--wait"));
    assert!(run(&["version", "--client"]).contains(env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completion", shell]).contains("garboardctl"), "{shell}");
    }
    let plugin = home.path().join("kubectl-garboard");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_garboardctl"), &plugin).unwrap();
    let help = std::process::Command::new(&plugin).args(["services", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: kubectl garboard services"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_prepared_to_join_and_its_token_renewed() {
    let scene = Scene::new().await;
    let file = scene.folder().join("node-2.yaml");
    let unsaid = scene.fails(&["join", "node-2"]);
    assert!(unsaid.contains("--at HOST"), "{unsaid}");
    let said = scene.ok(&["join", "node-2", "--at", "192.0.2.12", "--valid", "3600"]);
    assert!(said.contains("node-2.yaml") && said.contains("can join until"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read_to_string(&file).unwrap();
    let manifests = garboard_api::manifest::parse(&first).unwrap();
    assert_eq!(manifests.join_token.unwrap().machine, "node-2");
    let config = fs::read_to_string(scene.folder().join("config.yaml")).unwrap();
    assert!(config.contains("- name: node-2") && config.contains("192.0.2.12:7443"), "{config}");
    // Others' names and comments are as they were, and the machine is known by the key that it was given.
    assert!(config.contains("# Where you reach the Kubernetes API."), "{config}");
    assert_eq!(config.matches("fingerprint: sha256:").count(), 2);

    // With two machines the first speaks for the cluster.
    scene.ok(&["join", "node-2"]);
    assert_eq!(fs::read_to_string(scene.folder().join("config.yaml")).unwrap(), config, "it is there already");
    let calls = scene.served.machine.state().calls.clone();
    assert!(calls.iter().any(|call| call.ends_with("JoinToken node-2 worker 3600")), "{calls:?}");
    assert!(scene.fails(&["join", "No"]).contains("lower-case"));
    assert!(!said.contains("is Ready"), "{said}");
    let said = scene.ok(&["join", "in-use", "--at", "192.0.2.13"]);
    assert!(said.contains("The node in-use is Ready"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_maintainer_needs_is_collected_without_secrets() {
    let scene = Scene::new().await;
    scene.served.machine.state().services = vec![service("etcd", true)];
    let line = |text: &str| LogLine { unix_usec: 1_700_000_000_000_000, text: text.into() };
    scene.served.machine.state().lines = vec![line("begins"), line("token abcdef.0123456789abcdef")];
    let folder = scene.folder().join("support");
    let said = scene.ok(&["support", folder.to_str().unwrap()]);
    assert!(said.contains("1 of 1 machines"), "{said}");
    let read = |file: &str| fs::read_to_string(folder.join("node-1").join(file)).unwrap();
    let status: Value = serde_json::from_str(&read("status.json")).unwrap();
    assert_eq!(status["services"][0]["name"], "etcd");
    for log in ["etcd.log", "kernel.log"] {
        let log = read(log);
        assert!(log.contains("2023-11-14T22:13:20.000000Z begins\n") && log.contains("token [redacted]\n"), "{log}");
    }
    let again = scene.fails(&["support", folder.to_str().unwrap()]);
    assert!(again.contains("not empty"), "{again}");
}

/// A whole snapshot, longer than a piece.
fn snapshot() -> Vec<u8> {
    let content = vec![7; 600 * 512];
    [content.as_slice(), ring::digest::digest(&ring::digest::SHA256, &content).as_ref()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_kept_only_when_it_is_whole() {
    let scene = Scene::new().await;
    let file = scene.folder().join("store.db");
    let path = file.to_str().unwrap();
    scene.served.machine.state().snapshot = snapshot()[..5000].to_vec();
    let error = scene.fails(&["etcd", "snapshot", path]);
    assert!(error.contains("cut off"), "{error}");
    let left = fs::read_dir(scene.folder())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("store.db"));
    assert_eq!(left.count(), 0, "nothing is left of what is not whole");

    scene.served.machine.state().snapshot = snapshot();
    scene.ok(&["etcd", "snapshot", path]);
    assert_eq!(fs::read(&file).unwrap(), snapshot());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let error = scene.fails(&["etcd", "snapshot", path]);
    assert!(error.contains("is there already"), "{error}");
    scene.ok(&["etcd", "snapshot", path, "--force"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_asked_for_and_sends_what_is_whole() {
    let scene = Scene::new().await;
    let file = scene.folder().join("store.db");
    let path = file.to_str().unwrap();
    fs::write(&file, &snapshot()[..5000]).unwrap();
    let error = scene.fails(&["etcd", "restore", path, "--yes"]);
    assert!(error.contains("store.db") && error.contains("cut off"), "{error}");
    fs::write(&file, snapshot()).unwrap();
    let error = scene.fails(&["etcd", "restore", path]);
    assert!(error.contains("give --yes"), "{error}");
    assert!(scene.served.machine.state().calls.is_empty(), "nothing was asked of the machine");
    scene.ok(&["etcd", "restore", path, "--yes"]);
    assert_eq!(scene.served.machine.state().restored, snapshot());
    scene.ok(&["etcd", "restore", "--from-own-data", "--yes"]);
    scene.ok(&["etcd", "restore", "--from-set-aside", "--yes"]);
    let calls = scene.served.machine.state().calls.clone();
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(calls[1].contains("OwnData") && calls[2].contains("SetAside"), "{calls:?}");
    let both = scene.command(&["etcd", "restore", path, "--from-own-data"]).output().unwrap();
    assert_eq!(both.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_a_table_for_people_and_stable_fields_for_programs() {
    let scene = Scene::new().await;
    let error = scene.fails(&["etcd", "members"]);
    assert!(error.contains("etcd does not run"), "{error}");
    let member =
        EtcdMember { id: 255, name: "node-1".into(), peer_urls: vec!["https://a:2380".into()], learner: false };
    let health =
        EtcdHealth { id: 255, leader_id: 255, database_bytes: 3 << 20, used_bytes: 1 << 20, ..EtcdHealth::default() };
    let answer = EtcdMembersResponse { members: vec![member], health: Some(health) };
    scene.served.machine.state().etcd = Some(answer);
    assert!(scene.ok(&["etcd", "members"]).contains("node-1   ff   Voter   yes      this"));
    let members = scene.json(&["etcd", "members", "-o", "json"]);
    assert_eq!(
        members["members"],
        json!([{ "id": "ff", "name": "node-1", "peerURLs": ["https://a:2380"], "role": "Voter", "leader": true, "own": true }])
    );
    assert_eq!(members["health"]["databaseBytes"], 3 << 20);
    let done = scene.json(&["etcd", "defragment", "-o", "json"]);
    assert_eq!((&done["before"]["databaseBytes"], &done["after"]["databaseBytes"]), (&json!(3 << 20), &json!(1 << 20)));
}
