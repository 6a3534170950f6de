//! A folder made by `garboardctl new`, and a served machine with the key in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use garboard_machine_api::proto::KubeconfigResponse;
use garboard_machine_api::server::Limits;
use garboard_machine_api::testing::{Served, only, start_as};
use garboard_machine_api::{Identity, Role};
use serde_json::Value;

/// Longest time for anything here: many times what it takes.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Scene {
    home: tempfile::TempDir,
    pub served: Served,
}

/// The program, with nothing of the developer's own settings.
pub fn garboardctl(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_garboardctl"));
    command.env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

impl Scene {
    pub async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("lab");
        let made = garboardctl(home.path())
            .arg("new")
            .arg(&folder)
            .args(["--api-endpoint", "127.0.0.1:16443"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let admin = Identity::load(&folder.join("admin.key")).unwrap();
        let machine = std::fs::read_to_string(folder.join("machine.yaml")).unwrap();
        let served =
            start_as(machine_key(&machine), only(&admin, "admin", Role::Admin), Limits::default()).await.unwrap();
        Self { home, served }
    }

    pub fn folder(&self) -> PathBuf {
        self.home.path().join("lab")
    }

    pub fn context(&self) -> &str {
        "lab"
    }

    pub fn admin(&self) -> Identity {
        Identity::load(&self.folder().join("admin.key")).unwrap()
    }

    pub fn gives_kubeconfig(&self) {
        self.served.machine.state().kubeconfig = Some(KubeconfigResponse {
            cluster: "cluster".into(),
            server: "https://192.0.2.1:6443".into(),
            ca: "ca".into(),
            certificate: "certificate".into(),
            not_after_unix_ms: 1_700_000_000_000,
        });
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = garboardctl(self.home.path());
        command.arg("--config").arg(self.folder());
        if !arguments.contains(&"-e") {
            command.args(["-e", &self.served.endpoint.to_string()]);
        }
        command.args(arguments);
        command
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }
}

/// The machine's own key in the Secret of machine.yaml.
fn machine_key(manifest: &str) -> Identity {
    let secret = manifest.split("\n---\n").last().unwrap();
    let secret: Value = serde_yaml_ng::from_str(secret).unwrap();
    assert_eq!((&secret["kind"], &secret["type"]), (&"Secret".into(), &"garboard.dev/machine-identity".into()));
    Identity::from_pem(secret["stringData"]["identity.key"].as_str().unwrap()).unwrap()
}

pub fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
