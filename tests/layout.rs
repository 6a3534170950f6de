//! What the crates may be built from, read from `cargo metadata`: the dependency direction of the workspace, the purity of its pure
//! crates, one TLS stack, permissive licences.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which crates of the workspace each crate may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("garboard-supervisor", &[]),
    ("garboard-sys", &[]),
    ("garboard-api", &[]),
    ("garboard-tpm", &[]),
    ("garboard-api-client", &["garboard-tpm"]),
    ("garboard-fuzz", &[]),
    ("garboard-pause", &[]),
    ("garboard-sample", &[]),
    ("garboard-machine-api", &[]),
    ("garboard-etcd-client", &[]),
    ("garboard-control", &["garboard-supervisor"]),
    ("garboard-init", &["garboard-control", "garboard-supervisor", "garboard-sys"]),
    ("garboard-catalog", &["garboard-api", "garboard-supervisor"]),
    ("garboard-plan", &["garboard-api", "garboard-catalog", "garboard-supervisor"]),
    ("garboard-runtime", &["garboard-api", "garboard-api-client", "garboard-sys"]),
    (
        "garboard-controllers",
        &[
            "garboard-api",
            "garboard-api-client",
            "garboard-catalog",
            "garboard-control",
            "garboard-etcd-client",
            "garboard-machine-api",
            "garboard-plan",
            "garboard-runtime",
            "garboard-supervisor",
            "garboard-sys",
            "garboard-tpm",
        ],
    ),
    (
        "garboard-operators",
        &[
            "garboard-api",
            "garboard-controllers",
            "garboard-control",
            "garboard-machine-api",
            "garboard-plan",
            "garboard-runtime",
            "garboard-sys",
            "garboard-tpm",
        ],
    ),
    ("garboardctl", &["garboard-api", "garboard-machine-api"]),
    ("garboard-balancer", &["garboard-sys"]),
    ("garboard-bus", &["garboard-control"]),
    ("garboard-cni", &["garboard-api", "garboard-sys"]),
    ("garboard-dns", &["garboard-api", "garboard-api-client", "garboard-sys"]),
    // How to reach the API server; what is tested is the image and its programs, and never a part of them.
    ("garboard-tests", &["garboard-api-client", "garboard-tpm"]),
];

/// Crates that decide and touch nothing, and what must therefore not be among anything that they are built from.
const PURE: &[&str] = &["garboard-api", "garboard-plan", "garboard-catalog", "garboard-supervisor"];
const EFFECTS: &[&str] = &["tokio", "nix", "rustix", "kube-client", "hyper", "rustls"];

/// What PID 1 must not be built from.
const NOT_IN_PID_1: &[&str] = &["kube", "kube-client", "k8s-openapi", "rustls", "ring"];

/// A second TLS or cryptography stack, or a C library behind one.
const NOT_ANYWHERE: &[&str] = &["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "async-std", "smol"];

/// Licences that a dependency may be had under.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

struct Workspace {
    /// Names of packages by their identifier.
    names: BTreeMap<String, String>,
    /// Identifiers of what each package is built from, without what only its tests need.
    uses: BTreeMap<String, Vec<String>>,
    members: BTreeSet<String>,
    /// Names of the members that are programs.
    programs: BTreeSet<String>,
    /// Licence expressions by identifier.
    licences: BTreeMap<String, String>,
}

fn workspace() -> Workspace {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let normal = |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    Workspace {
        names: list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect(),
        uses: list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let deps = list(&node["deps"]);
                (text(&node["id"]), deps.iter().filter(|d| normal(d)).map(|d| text(&d["pkg"])).collect())
            })
            .collect(),
        licences: list(&metadata["packages"])
            .iter()
            .map(|p| (text(&p["id"]), p["license"].as_str().unwrap_or("none").to_owned()))
            .collect(),
        programs: list(&metadata["packages"])
            .iter()
            .filter(|package| package["source"].is_null())
            .filter(|package| list(&package["targets"]).iter().any(|target| target["kind"][0] == "bin"))
            .map(|package| text(&package["name"]))
            .collect(),
        members: list(&metadata["workspace_members"]).iter().map(text).collect(),
    }
}

impl Workspace {
    fn member(&self, name: &str) -> &str {
        self.members.iter().find(|id| self.names[*id] == name).unwrap_or_else(|| panic!("no crate {name}"))
    }

    /// Everything that the workspace is built from on Linux.
    fn built(&self) -> BTreeSet<String> {
        let tree = tree(&["--workspace", "--target", "x86_64-unknown-linux-musl"]);
        tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let workspace = workspace();
    let rules: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    for id in &workspace.members {
        let name = workspace.names[id].as_str();
        let allowed = rules.get(name).unwrap_or_else(|| panic!("{name} has no rule: say in this file what it may use"));
        for used in workspace.uses[id].iter().filter(|used| workspace.members.contains(*used)) {
            let used = workspace.names[used].as_str();
            assert!(allowed.contains(&used), "{name} must not use {used}: it may use {allowed:?}");
        }
    }
}

#[test]
fn pure_crates_name_no_crate_with_effects() {
    let workspace = workspace();
    for name in PURE {
        let used: Vec<_> =
            workspace.uses[workspace.member(name)].iter().map(|id| workspace.names[id].as_str()).collect();
        for effect in EFFECTS {
            assert!(!used.contains(effect), "{name} decides only: it must not use {effect}");
        }
    }
}

fn tree(arguments: &[&str]) -> String {
    tree_of("normal", arguments)
}

/// The lines of `cargo tree` with these kinds of edges.
fn tree_of(edges: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-e", edges, "--prefix", "none", "--format", "{p}"])
        .args(arguments)
        .output()
        .expect("run cargo tree");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pid_1_has_no_kubernetes_and_no_tls() {
    let listed = tree(&["-p", "garboard-init"]);
    let used: BTreeSet<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(used.contains("garboard-supervisor"), "cargo tree listed no crate of ours: {listed}");
    for name in NOT_IN_PID_1 {
        assert!(!used.contains(name), "PID 1 must not be built from {name}");
    }
}

/// Fakes, and the power cuts of `garboard-sys`. Features that tests turn on are those of tests alone where programs are built by themselves.
#[test]
fn no_program_has_what_is_for_tests() {
    let programs = workspace().programs;
    assert!(programs.contains("garboard-operators") && programs.contains("garboard-init"), "{programs:?}");
    for name in programs.into_iter().filter(|name| name != "garboard-tests") {
        let listed = tree_of("no-dev,features", &["-p", &name]);
        assert!(listed.contains("feature \"default\""), "cargo tree listed no features: {listed}");
        assert!(!listed.contains("feature \"testing\""), "{name} is built with what is for tests");
    }
}

#[test]
fn there_is_one_tls_stack_and_one_runtime() {
    let built = workspace().built();
    assert!(built.contains("rustls") && built.contains("tokio"), "cargo tree listed neither");
    for name in NOT_ANYWHERE {
        assert!(!built.contains(*name), "{name} is a second stack");
    }
}

/// `A OR B` needs one of its licences to be permissive, `A AND B` each; the old `A/B` means `A OR B`.
#[test]
fn every_dependency_has_a_permissive_licence() {
    let workspace = workspace();
    let built = workspace.built();
    for (id, expression) in &workspace.licences {
        let name = &workspace.names[id];
        if !built.contains(name) {
            continue;
        }
        let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
        let permitted =
            plain.split(" AND ").all(|needed| needed.split(" OR ").any(|licence| PERMISSIVE.contains(&licence.trim())));
        assert!(permitted, "{name} is licensed {expression}");
    }
}
