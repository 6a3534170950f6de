//! The dependency direction of the workspace, and the purity of its pure crates, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which crates of the workspace each crate may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("garboard-supervisor", &[]),
    ("garboard-sys", &[]),
    ("garboard-api", &[]),
    ("garboard-pause", &[]),
    ("garboard-sample", &[]),
    ("garboard-machine-api", &[]),
    ("garboard-control", &["garboard-supervisor"]),
    ("garboard-init", &["garboard-control", "garboard-supervisor", "garboard-sys"]),
    ("garboard-catalog", &["garboard-api", "garboard-supervisor"]),
    ("garboard-plan", &["garboard-api", "garboard-catalog", "garboard-supervisor"]),
    ("garboard-runtime", &["garboard-api"]),
    (
        "garboard-controllers",
        &[
            "garboard-api",
            "garboard-catalog",
            "garboard-control",
            "garboard-machine-api",
            "garboard-plan",
            "garboard-runtime",
            "garboard-supervisor",
            "garboard-sys",
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
        ],
    ),
    ("garboardctl", &["garboard-api", "garboard-machine-api"]),
    ("garboard-bus", &["garboard-control"]),
    ("garboard-cni", &["garboard-api", "garboard-sys"]),
    ("garboard-dns", &["garboard-api", "garboard-sys"]),
    ("garboard-tests", &[]),
];

/// Crates that decide and touch nothing, and what must therefore not be among anything that they are built from.
const PURE: &[&str] = &["garboard-api", "garboard-plan", "garboard-catalog", "garboard-supervisor"];
const EFFECTS: &[&str] = &["tokio", "nix", "rustix", "kube-client", "hyper", "rustls"];

/// What PID 1 must not be built from.
const NOT_IN_PID_1: &[&str] = &["kube", "kube-client", "k8s-openapi", "rustls", "ring"];

struct Workspace {
    /// Names of packages by their identifier.
    names: BTreeMap<String, String>,
    /// Identifiers of what each package is built from, without what only its tests need.
    uses: BTreeMap<String, Vec<String>>,
    members: BTreeSet<String>,
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
        members: list(&metadata["workspace_members"]).iter().map(text).collect(),
    }
}

impl Workspace {
    fn member(&self, name: &str) -> &str {
        self.members.iter().find(|id| self.names[*id] == name).unwrap_or_else(|| panic!("no crate {name}"))
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

/// Follows the manifests of PID 1's own crates; what a crate outside of the workspace could use under other features is not followed.
#[test]
fn pid_1_has_no_kubernetes_and_no_tls() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-p", "garboard-init", "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .output()
        .expect("run cargo tree");
    assert!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    let listed = String::from_utf8_lossy(&tree.stdout).into_owned();
    let used: BTreeSet<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(used.contains("garboard-supervisor"), "cargo tree listed no crate of ours: {listed}");
    for name in NOT_IN_PID_1 {
        assert!(!used.contains(name), "PID 1 must not be built from {name}");
    }
}
