//! What holds for every service, whatever it is.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use garboard_api::control_plane::{AdmissionPlugin, OWN_FLAGS, PodSecurityLevel};
use garboard_api::machine::{MachineRole, Registry, RegistryCredentials};
use garboard_catalog::{
    CatalogInput, EtcdFacts, EtcdRestore, EtcdSource, NodeFacts, Peer, ProxyMode, logins, services, users,
};
use garboard_supervisor::spec::{ProbeAction, Seccomp, ServiceSpec, Slice};
use serde_json::Value;

fn input() -> CatalogInput {
    CatalogInput {
        cluster: Default::default(),
        machine: Default::default(),
        node: NodeFacts {
            name: "node-1".to_owned(),
            addresses: vec!["192.0.2.10".parse().unwrap()],
            memory_bytes: 2 << 30,
            pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
            api_servers: vec!["192.0.2.11:6443".parse().unwrap()],
            peers: vec![Peer {
                name: "node-2".to_owned(),
                address: "192.0.2.11".parse().unwrap(),
                pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            }],
            etcd: Some(EtcdFacts { votes: true, ..EtcdFacts::default() }),
        },
        pause_image: "garboard.dev/pause:0.1.0".to_owned(),
    }
}

fn by_name(input: &CatalogInput) -> BTreeMap<String, ServiceSpec> {
    services(input).unwrap().into_iter().map(|spec| (spec.name.to_string(), spec)).collect()
}

/// The value of `--name=value`.
fn flag<'a>(spec: &'a ServiceSpec, name: &str) -> Option<&'a str> {
    spec.argv.iter().find_map(|arg| arg.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
}

fn config(spec: &ServiceSpec, file: &str) -> Value {
    let file = spec.files.iter().find(|rendered| rendered.path.ends_with(file)).unwrap();
    serde_json::from_str(&file.content).unwrap()
}

#[test]
fn every_service_waits_only_for_services_that_exist_and_never_in_a_circle() {
    let specs = by_name(&input());
    assert_eq!(specs.len(), services(&input()).unwrap().len(), "names are unique");
    let mut startable = BTreeSet::new();
    while startable.len() < specs.len() {
        let before = startable.len();
        for (name, spec) in &specs {
            if spec.requires.iter().all(|condition| startable.contains(condition.service.as_str())) {
                startable.insert(name.clone());
            }
        }
        assert!(startable.len() > before, "only {startable:?} can start");
    }
}

#[test]
fn a_worker_has_nothing_of_the_control_plane() {
    let mut worker = input();
    worker.machine.role = Some(MachineRole::Worker);
    worker.node.etcd = None;
    let all = by_name(&input());
    let specs = by_name(&worker);
    assert_eq!(Vec::from_iter(specs.keys()), ["balancer", "bus", "cni", "containerd", "dns", "kube-proxy", "kubelet"]);
    assert_eq!(config(&specs["balancer"], "config.json")["servers"], serde_json::json!(["192.0.2.11:6443"]));
    assert_eq!(
        config(&all["balancer"], "config.json")["servers"],
        serde_json::json!(["127.0.0.1:6443", "192.0.2.11:6443"])
    );
    for spec in specs.values() {
        for condition in &spec.requires {
            assert!(specs.contains_key(condition.service.as_str()), "{}", spec.name);
        }
    }
    let joining = garboard_catalog::joining(&worker.node.api_servers).unwrap();
    assert_eq!(joining, [specs["balancer"].clone()]);
}

#[test]
fn a_machine_joins_the_control_plane_with_etcd_first() {
    let mut joiner = input();
    let url = |name: &str, address: &str| (name.to_owned(), format!("https://{address}:2380"));
    let members = BTreeMap::from([url("node-0", "192.0.2.9"), url("node-1", "192.0.2.10")]);
    joiner.node.etcd = Some(EtcdFacts { initial_cluster: Some(members), others: true, ..EtcdFacts::default() });
    let learner = by_name(&joiner);
    let worker: BTreeSet<_> = ["balancer", "bus", "cni", "containerd", "dns", "kube-proxy", "kubelet"].into();
    let beside: Vec<_> = learner.keys().filter(|name| !worker.contains(name.as_str())).collect();
    assert_eq!(beside, ["etcd"]);
    let etcd = &learner["etcd"];
    assert_eq!(flag(etcd, "initial-cluster"), Some("node-0=https://192.0.2.9:2380,node-1=https://192.0.2.10:2380"));
    assert_eq!(flag(etcd, "initial-cluster-state"), Some("existing"));
    assert_eq!(flag(etcd, "listen-peer-urls"), Some("https://192.0.2.10:2380"));

    joiner.node.etcd.as_mut().unwrap().votes = true;
    let voter = by_name(&joiner);
    for (name, spec) in &learner {
        let same = name == "balancer" || voter[name] == *spec;
        assert!(same, "to count changes {name}");
    }
    assert_eq!(voter.len(), by_name(&input()).len());
    let servers = |input: &CatalogInput| config(&by_name(input)["balancer"], "config.json")["servers"].clone();
    assert_eq!(servers(&joiner), serde_json::json!(["192.0.2.11:6443"]), "its own does not serve yet");
    joiner.node.etcd.as_mut().unwrap().serves = true;
    assert_eq!(servers(&joiner), serde_json::json!(["127.0.0.1:6443", "192.0.2.11:6443"]));
    for name in ["kube-controller-manager", "kube-scheduler"] {
        assert_eq!(flag(&voter[name], "leader-elect"), Some("true"), "{name}");
        assert_eq!(flag(&by_name(&input())[name], "leader-elect"), Some("false"), "{name}");
    }
}

#[test]
fn nothing_uses_the_store_while_it_is_made_anew() {
    let mut restoring = input();
    let names = |input: &CatalogInput| by_name(input).into_keys().collect::<BTreeSet<_>>();
    let mut worker = input();
    worker.machine.role = Some(MachineRole::Worker);
    worker.node.etcd = None;
    restoring.node.etcd.as_mut().unwrap().restore = Some(EtcdRestore::Still);
    assert_eq!(names(&restoring), names(&worker));
    for (source, file, unchecked) in [
        (EtcdSource::Snapshot, "/var/lib/etcd-restore/snapshot.db", "false"),
        (EtcdSource::OwnData, "/var/lib/etcd/member/snap/db", "true"),
        (EtcdSource::SetAside, "/var/lib/etcd-restore/set-aside/member/snap/db", "true"),
    ] {
        let make = EtcdRestore::Make { source, token: "fresh".to_owned() };
        restoring.node.etcd.as_mut().unwrap().restore = Some(make);
        let specs = by_name(&restoring);
        let beside: Vec<_> = specs.keys().filter(|name| !names(&worker).contains(*name)).collect();
        assert_eq!(beside, ["etcd-restore"]);
        let spec = &specs["etcd-restore"];
        assert_eq!((flag(spec, "snapshot"), flag(spec, "skip-hash-check")), (Some(file), Some(unchecked)));
        assert_eq!(flag(spec, "initial-cluster-token"), Some("fresh"));
        assert!(spec.oneshot && spec.user == "etcd" && spec.argv0.as_deref() == Some("etcd-restore"));
    }
}

#[test]
fn only_what_makes_containers_mounts_or_packet_filters_runs_as_root() {
    let root: Vec<_> =
        by_name(&input()).into_values().filter(|spec| spec.user == "root").map(|spec| spec.name.to_string()).collect();
    assert_eq!(root, ["cni", "containerd", "kube-proxy", "kubelet"]);
}

#[test]
fn users_are_those_of_the_image() {
    let passwd =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../image/mkosi.extra/final/etc/passwd"))
            .unwrap();
    let found: BTreeMap<&str, u32> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .map(|fields| (fields[0], fields[2].parse().unwrap()))
        .collect();
    for user in users::ALL {
        assert_eq!(found.get(user.name), Some(&user.id), "{}", user.name);
    }
    for spec in services(&input()).unwrap() {
        assert!(users::ALL.iter().any(|user| user.name == spec.user), "{}", spec.name);
    }
}

#[test]
fn every_service_is_confined_as_far_as_it_can_be() {
    for (name, spec) in by_name(&input()) {
        let isolation = &spec.isolation;
        match name.as_str() {
            "containerd" | "kubelet" => continue,
            "cni" => assert!(isolation.capabilities.is_some()),
            _ => {
                assert!(isolation.private_mounts && isolation.private_tmp && isolation.private_devices, "{name}");
                assert_eq!(isolation.seccomp, Seccomp::Service, "{name}");
            }
        }
        assert!(isolation.no_new_privileges, "{name}");
        let allowed: &[&str] = match name.as_str() {
            "cni" => continue,
            "kube-proxy" => &["CAP_NET_ADMIN"],
            "dns" => &["CAP_NET_BIND_SERVICE"],
            _ => &[],
        };
        assert_eq!(isolation.capabilities.as_deref().unwrap(), allowed, "{name}");
    }
}

#[test]
fn every_service_has_limits_and_guarantees() {
    for (name, spec) in by_name(&input()) {
        let cgroup = &spec.cgroup;
        assert!(cgroup.pids_max.is_some(), "{name}");
        assert!(cgroup.memory_min.unwrap() <= cgroup.memory_low.unwrap(), "{name}");
        // Nothing of the node is killed before a pod, and PID 1 after everything.
        assert!((-999..=-997).contains(&cgroup.oom_score_adj), "{name}");
        assert!(cgroup.memory_max.is_none_or(|max| max > cgroup.memory_low.unwrap()), "{name}");
        assert!((1..=10_000).contains(&cgroup.cpu_weight.unwrap_or(100)), "{name}");
        let control_plane =
            ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"].contains(&name.as_str());
        assert_eq!(cgroup.slice == Slice::ControlPlane, control_plane, "{name}");
    }
}

#[test]
fn guarantees_leave_room_on_the_smallest_machine() {
    let mut input = input();
    input.node.memory_bytes = 1100 << 20;
    let specs = by_name(&input);
    let guaranteed: u64 = specs.values().filter_map(|spec| spec.cgroup.memory_min).sum();
    assert!(guaranteed < input.node.memory_bytes / 2, "{guaranteed}");
    let reserved = config(&specs["kubelet"], "config.json")["kubeReserved"]["memory"].as_str().unwrap().to_owned();
    let reserved: u64 = reserved.strip_suffix("Mi").unwrap().parse().unwrap();
    // The rest of the reservation: 128 MiB for the system and 100 MiB before eviction.
    assert!(reserved + 128 + 100 < 1100 - 128, "{reserved}");
}

#[test]
fn files_lie_in_the_services_own_folder_and_are_nobody_elses_to_read() {
    for (name, spec) in by_name(&input()) {
        for file in &spec.files {
            assert!(file.path.starts_with(format!("/run/garboard/services/{name}")), "{}", file.path.display());
            assert_eq!(file.mode & 0o077, 0, "{}", file.path.display());
            assert!(!file.content.contains("PRIVATE KEY"), "{}", file.path.display());
        }
        assert!(
            spec.directories.iter().any(|directory| directory.path.ends_with(&name) && directory.mode & 0o007 == 0),
            "{name}"
        );
        for path in &spec.isolation.read_write {
            let made = spec.directories.iter().any(|directory| directory.path == *path);
            assert!(made || path.starts_with("/proc/sys"), "{name} cannot write to {}", path.display());
        }
    }
}

#[test]
fn no_flag_is_given_twice() {
    for (name, spec) in by_name(&input()) {
        let flags: Vec<_> = spec.argv[1..].iter().map(|arg| arg.split('=').next()).collect();
        assert_eq!(flags.iter().collect::<BTreeSet<_>>().len(), flags.len(), "{name}");
    }
}

#[test]
fn what_the_user_declares_reaches_the_components_and_nothing_of_it_is_given_already() {
    let mut input = input();
    let control_plane = &mut input.cluster.control_plane;
    control_plane.feature_gates = BTreeMap::from([("A".to_owned(), true), ("B".to_owned(), false)]);
    control_plane.api_server.extra_args = BTreeMap::from([("event-ttl".to_owned(), "2h".to_owned())]);
    control_plane.controller_manager.extra_args = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
    control_plane.scheduler.extra_args = BTreeMap::from([("v".to_owned(), "3".to_owned())]);
    let specs = by_name(&input);
    for (service, name, value) in
        [("kube-apiserver", "event-ttl", "2h"), ("kube-controller-manager", "v", "2"), ("kube-scheduler", "v", "3")]
    {
        let spec = &specs[service];
        assert_eq!((flag(spec, name), flag(spec, "feature-gates")), (Some(value), Some("A=true,B=false")), "{service}");
        for given in spec.argv[1..].iter().filter_map(|arg| arg.strip_prefix("--")?.split('=').next()) {
            assert!(given == name || OWN_FLAGS.contains(&given), "--{given} of {service} could be declared twice");
        }
    }
}

#[test]
fn issuers_and_pod_security_are_in_the_configuration_of_the_api_server() {
    let mut input = input();
    let api_server = &mut input.cluster.control_plane.api_server;
    api_server.oidc = vec![
        serde_json::from_value(serde_json::json!({
            "issuerURL": "https://issuer.example", "audiences": ["a", "b"], "usernamePrefix": "oidc:", "groupsClaim": "groups",
        }))
        .unwrap(),
    ];
    api_server.pod_security.enforce = PodSecurityLevel::Privileged;
    api_server.pod_security.exempt_namespaces = vec!["storage".to_owned()];
    let spec = &by_name(&input)["kube-apiserver"];
    let jwt = config(spec, "authentication.json")["jwt"][0].clone();
    assert_eq!(jwt["issuer"]["audienceMatchPolicy"], "MatchAny");
    assert_eq!(jwt["claimMappings"]["username"], serde_json::json!({ "claim": "sub", "prefix": "oidc:" }));
    assert_eq!(jwt["claimMappings"]["groups"], serde_json::json!({ "claim": "groups", "prefix": "oidc:" }));
    let plugin = config(spec, "admission.json")["plugins"][0]["configuration"].clone();
    assert_eq!(plugin["defaults"]["enforce"], "privileged");
    assert_eq!(plugin["exemptions"]["namespaces"], serde_json::json!(["kube-system", "storage"]));
}

#[test]
fn declared_admission_plugins_are_on_and_configured() {
    let plugins = |input: &CatalogInput| {
        let specs = by_name(input);
        let spec = &specs["kube-apiserver"];
        let on = spec.argv.iter().find_map(|arg| arg.strip_prefix("--enable-admission-plugins=")).unwrap().to_owned();
        (on, config(spec, "admission.json")["plugins"].clone())
    };
    let mut input = input();
    let (on, configured) = plugins(&input);
    assert_eq!((on.as_str(), configured.as_array().unwrap().len()), ("NodeRestriction", 1));

    let limit = serde_json::json!({ "type": "SourceAndObject", "qps": 5, "burst": 10, "cacheSize": 100 });
    let api_server = &mut input.cluster.control_plane.api_server;
    api_server.admission_plugins = vec![AdmissionPlugin::AlwaysPullImages, AdmissionPlugin::DenyServiceExternalIPs];
    api_server.event_rate_limits = vec![serde_json::from_value(limit.clone()).unwrap()];
    let (on, configured) = plugins(&input);
    assert_eq!(on, "NodeRestriction,AlwaysPullImages,DenyServiceExternalIPs,EventRateLimit");
    assert_eq!(
        (&configured[1]["name"], &configured[1]["configuration"]["limits"][0]),
        (&"EventRateLimit".into(), &limit)
    );
}

#[test]
fn kubelets_settings_replace_defaults_one_by_one() {
    let mut input = input();
    let kubelet = &mut input.machine.kubelet;
    kubelet.system_reserved = BTreeMap::from([("memory".to_owned(), "1Gi".to_owned())]);
    kubelet.eviction_hard = BTreeMap::from([("nodefs.available".to_owned(), "5%".to_owned())]);
    kubelet.feature_gates = BTreeMap::from([("A".to_owned(), true)]);
    let config = config(&by_name(&input)["kubelet"], "config.json");
    assert_eq!(config["systemReserved"], serde_json::json!({ "cpu": "50m", "memory": "1Gi", "pid": "1024" }));
    let eviction = &config["evictionHard"];
    assert_eq!((&eviction["nodefs.available"], &eviction["memory.available"]), (&"5%".into(), &"100Mi".into()));
    assert_eq!(config["featureGates"], serde_json::json!({ "A": true }));
}

#[test]
fn registries_are_reached_by_their_mirrors() {
    let mut input = input();
    let containerd = |input: &CatalogInput| by_name(input).remove("containerd").unwrap();
    let path = |spec: &ServiceSpec| {
        let config = &spec.files.iter().find(|file| file.path.ends_with("config.toml")).unwrap().content;
        config.lines().find_map(|line| line.trim().strip_prefix("config_path = ").map(str::to_owned)).unwrap()
    };
    let before = path(&containerd(&input));
    input.machine.registries = vec![Registry {
        host: "docker.io".to_owned(),
        mirrors: vec!["https://mirror.example".to_owned()],
        ca: Some("-----BEGIN CERTIFICATE-----".to_owned()),
        credentials: None,
    }];
    let spec = containerd(&input);
    let named = RegistryCredentials { secret_name: "keel".to_owned() };
    input.machine.registries[0].credentials = Some(named);
    assert_eq!(containerd(&input), spec, "who the machine is to a registry is for kubelet to say");
    assert_ne!(path(&spec), before, "what is no longer declared is not found any more");
    let file = |name: &str| spec.files.iter().find(|file| file.path.ends_with(name)).unwrap();
    let hosts = file("docker.io/hosts.toml");
    let ca = file("docker.io/ca.crt").path.display().to_string();
    let expected = format!(
        "server = \"https://registry-1.docker.io\"\nca = \"{ca}\"\n\n[host.\"https://mirror.example\"]\n\
         capabilities = [\"pull\", \"resolve\"]\nca = \"{ca}\"\n"
    );
    assert_eq!(hosts.content, expected);
    for file in &spec.files {
        let folder = file.path.parent().unwrap();
        assert!(spec.directories.iter().any(|directory| Path::new(&directory.path) == folder), "{}", folder.display());
    }
}

#[test]
fn kubelet_finds_credentials_of_registries_in_its_home() {
    let spec = by_name(&input()).remove("kubelet").unwrap();
    assert_eq!(Path::new(&spec.env["HOME"]).join(".docker/config.json"), Path::new(logins::FILE));
    // It looks there last, and takes the first file that it can read.
    let places = [Path::new("/var/lib/kubelet"), spec.working_directory.as_path()];
    for file in &spec.files {
        assert!(!places.iter().any(|place| file.path == place.join("config.json")), "{}", file.path.display());
    }
    let login = logins::Login { username: "keel".to_owned(), password: "s3cret\"".to_owned() };
    let config = logins::config(&[("registry.example:5000/team".to_owned(), login)].into());
    let read: serde_json::Value = serde_json::from_str(&config).unwrap();
    let auths = serde_json::json!({ "registry.example:5000/team": { "username": "keel", "password": "s3cret\"" } });
    assert_eq!(read, serde_json::json!({ "auths": auths }));
}

#[test]
fn every_listener_is_on_loopback_or_asks_for_a_certificate() {
    let specs = by_name(&input());
    for (service, listener) in [
        ("etcd", "listen-client-urls"),
        ("kube-controller-manager", "bind-address"),
        ("kube-scheduler", "bind-address"),
    ] {
        assert!(flag(&specs[service], listener).unwrap().contains("127.0.0.1"), "{service}");
    }
    assert_eq!(flag(&specs["etcd"], "client-cert-auth"), Some("true"));
    // Its socket is closed to all but its own group, which only the API server is in.
    assert_eq!(specs["etcd"].umask, 0o007);
    for (name, spec) in &specs {
        assert_eq!(spec.supplementary_groups.contains(&"etcd".to_owned()), name == "kube-apiserver", "{name}");
    }
    assert_eq!(flag(&specs["etcd"], "peer-client-cert-auth"), Some("true"));
    assert!(flag(&specs["kube-apiserver"], "client-ca-file").is_some());
    for arg in specs.values().flat_map(|spec| &spec.argv) {
        assert!(!arg.contains("http://"), "{arg}");
    }
    let kubelet = config(&specs["kubelet"], "config.json");
    assert_eq!(kubelet["readOnlyPort"], 0);
    assert_eq!(kubelet["healthzBindAddress"], "127.0.0.1");
    assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
    assert_eq!(kubelet["authorization"]["mode"], "Webhook");
    let proxy = config(&specs["kube-proxy"], "config.json");
    for listener in ["healthzBindAddress", "metricsBindAddress"] {
        assert!(proxy[listener].as_str().unwrap().starts_with("127.0.0.1:"));
    }
}

#[test]
fn every_tls_listener_takes_modern_versions_and_suites_only() {
    let specs = by_name(&input());
    for service in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        assert_eq!(flag(&specs[service], "tls-min-version"), Some("VersionTLS12"), "{service}");
        assert!(flag(&specs[service], "tls-cipher-suites").is_some(), "{service}");
        assert_eq!(flag(&specs[service], "profiling"), Some("false"), "{service}");
    }
    assert_eq!(flag(&specs["etcd"], "tls-min-version"), Some("TLS1.2"));
    assert_eq!(config(&specs["kubelet"], "config.json")["tlsMinVersion"], "VersionTLS12");
    let suites = flag(&specs["etcd"], "cipher-suites").unwrap();
    assert!(suites.split(',').all(|suite| suite.starts_with("TLS_ECDHE_") && !suite.contains("CBC")), "{suites}");
}

#[test]
fn only_health_is_anonymous() {
    let config = config(&by_name(&input())["kube-apiserver"], "authentication.json");
    let paths: Vec<_> =
        config["anonymous"]["conditions"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/livez", "/readyz", "/healthz"]);
}

#[test]
fn every_service_says_when_it_serves() {
    for (name, spec) in by_name(&input()) {
        let readiness = spec.readiness.unwrap();
        if let ProbeAction::Https { ca_file, .. } = readiness.action {
            assert!(ca_file.starts_with("/run/garboard/pki"), "{name}");
        }
    }
}

#[test]
fn a_specification_survives_the_control_socket() {
    for spec in services(&input()).unwrap() {
        let json = serde_json::to_vec(&spec).unwrap();
        assert_eq!(serde_json::from_slice::<ServiceSpec>(&json).unwrap(), spec);
    }
}

#[test]
fn an_address_block_that_comes_late_restarts_nothing() {
    let late = by_name(&input());
    let mut early = input();
    early.node.pod_cidrs.clear();
    for (name, mut spec) in by_name(&early) {
        if spec != late[&name] {
            assert!(spec.watches_files, "{name}");
            spec.files.clone_from(&late[&name].files);
            assert_eq!(spec, late[&name], "{name}");
        }
    }
}

#[test]
fn dns_listens_on_the_bridge_alone() {
    let config = config(&by_name(&input())["dns"], "config.json");
    assert_eq!(config["listen"], serde_json::json!(["10.244.3.1:53"]));
}

#[test]
fn the_proxy_mode_changes_kube_proxy_and_kubelets_chains_alone() {
    let nftables = by_name(&input());
    for mode in [ProxyMode::Iptables, ProxyMode::Ipvs] {
        let mut input = input();
        input.cluster.proxy_mode = mode;
        let changed: Vec<_> =
            by_name(&input).into_iter().filter(|(name, spec)| *spec != nftables[name]).map(|(name, _)| name).collect();
        assert_eq!(changed, ["kube-proxy", "kubelet"]);
    }
}

#[test]
fn without_an_address_there_is_no_control_plane() {
    let mut input = input();
    input.node.addresses.clear();
    assert_eq!(services(&input), Err(garboard_catalog::CatalogError::NoAddress));
}
