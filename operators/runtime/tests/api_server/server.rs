//! A real API server with its store, on loopback ports of their own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::{Client, Config};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
const TOKEN: &str = "test-token";

/// A running API server; it ends with the value.
pub struct Server {
    folder: TempDir,
    programs: PathBuf,
    etcd_port: u16,
    port: u16,
    etcd: Option<Child>,
    apiserver: Option<Child>,
}

impl Server {
    /// Starts one; none without the upstream programs (`image/build` makes them, `GARBOARD_UPSTREAM` tells where they are).
    pub async fn start() -> Option<Self> {
        let programs = match std::env::var_os("GARBOARD_UPSTREAM") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/garboard/upstream/bin"),
        };
        if !programs.join("kubernetes").exists() {
            eprintln!("skipped: no upstream programs in {}", programs.display());
            return None;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.path().join("service-account.key"), key.serialize_pem()).unwrap();
        fs::write(folder.path().join("service-account.pub"), key.public_key_pem()).unwrap();
        fs::write(folder.path().join("tokens"), format!("{TOKEN},test,test,system:masters\n")).unwrap();
        std::os::unix::fs::symlink(programs.join("kubernetes"), folder.path().join("kube-apiserver")).unwrap();
        std::os::unix::fs::symlink(programs.join("kubernetes"), folder.path().join("kubectl")).unwrap();
        let [etcd_port, port] = [free_port(), free_port()];
        let mut server = Self { folder, programs, etcd_port, port, etcd: None, apiserver: None };
        server.start_etcd();
        server.start_apiserver().await;
        Some(server)
    }

    fn start_etcd(&mut self) {
        let url = format!("http://127.0.0.1:{}", self.etcd_port);
        let peer = format!("http://127.0.0.1:{}", free_port());
        let child = self
            .command(&self.programs.join("etcd"), "etcd.log")
            .arg("--data-dir")
            .arg(self.folder.path().join("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .spawn()
            .unwrap();
        self.etcd = Some(child);
    }

    /// Starts the API server again after [`Self::stop_apiserver`], with everything that it had.
    pub async fn start_apiserver(&mut self) {
        let folder = self.folder.path();
        let file = |name: &str| folder.join(name).display().to_string();
        let child = self
            .command(&folder.join("kube-apiserver"), "apiserver.log")
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", file("certificates")))
            .arg(format!("--token-auth-file={}", file("tokens")))
            .arg(format!("--service-account-key-file={}", file("service-account.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("service-account.key")))
            .args(["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none", "--authorization-mode=RBAC"])
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/16",
            ])
            .args(["--shutdown-delay-duration=0s", "--shutdown-watch-termination-grace-period=1s"])
            .spawn()
            .unwrap();
        self.apiserver = Some(child);
        let client = self.client();
        let limit = Instant::now() + LIMIT;
        loop {
            let ready = client.request_text(http::Request::get("/readyz").body(Vec::new()).unwrap());
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), ready).await {
                return;
            }
            let ended = self.apiserver.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
            assert!(!ended && Instant::now() < limit, "no API server: {}", self.log("apiserver.log"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills the API server; its store lives on.
    pub fn stop_apiserver(&mut self) {
        if let Some(mut child) = self.apiserver.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        let mut config = Config::new(format!("https://127.0.0.1:{}", self.port).parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info = serde_json::from_value(serde_json::json!({ "token": TOKEN })).unwrap();
        Client::try_from(config).unwrap()
    }

    /// What kubectl prints.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = Command::new(self.folder.path().join("kubectl"))
            .args([&format!("--server=https://127.0.0.1:{}", self.port), "--insecure-skip-tls-verify"])
            .arg(format!("--token={TOKEN}"))
            .arg(format!("--cache-dir={}", self.folder.path().join("kubectl-cache").display()))
            .args(args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn command(&self, program: &Path, log: &str) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join(log)).unwrap();
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [self.apiserver.take(), self.etcd.take()].iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
