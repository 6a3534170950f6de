//! A real API server with its store and the real operators, as processes of this host.
//!
//! The API server and etcd have the flags that they need to serve, and nothing else; what the operators ask for comes to the audit log.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use garboard_api_client::{Identity, Outage};
use garboard_tests::image::top;
use http::{Request, Uri};
use kube::Client;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::requests::Requests;
use crate::pki::{self, Authority, Leaf};

/// Longest time until the API server serves.
const LIMIT: Duration = Duration::from_secs(180);
/// Where the operators look for the API server: that of their machine, and nowhere else.
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 6443;
/// The operators' name, and their group.
const OPERATORS: &str = "garboard:operators";
/// Ticks in a second of processor time as /proc counts it (proc(5), the same on all of Linux' 64-bit architectures).
const TICKS: f64 = 100.0;
const KIB_PER_MIB: f64 = 1024.0;

/// The programs; they end with the value.
pub struct Server {
    // Before the folder, which they use.
    operators: Option<Process>,
    apiserver: Process,
    _etcd: Process,
    folder: TempDir,
    authority: Authority,
}

/// What the operators have used of the host.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time since their start, seconds.
    pub cpu: f64,
    /// Proportional set size, MiB.
    pub pss: f64,
    /// Largest resident set size since their start, MiB.
    pub peak: f64,
}

impl Server {
    /// Starts etcd and the API server, and brings the operators' resources in.
    ///
    /// # Errors
    /// When a program is missing or does not serve.
    pub async fn start() -> Result<Self> {
        let upstream = upstream()?;
        let folder = tempfile::Builder::new().prefix("garboard-").tempdir().context("make a folder")?;
        let file = |name: &str| folder.path().join(name);
        for name in ["kube-apiserver", "kubectl"] {
            symlink(upstream.join("kubernetes"), file(name)).with_context(|| format!("link {name}"))?;
        }
        let authority = Authority::new("bench")?;
        let accounts = KeyPair::generate()?;
        let server = authority.server([ADDRESS, Ipv4Addr::new(10, 96, 0, 1)])?;
        for (name, content) in [
            ("ca.crt", authority.certificate.as_str()),
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("service-account.key", &accounts.serialize_pem()),
            ("service-account.pub", &accounts.public_key_pem()),
            ("audit-policy.json", &audit_policy().to_string()),
        ] {
            fs::write(file(name), content).with_context(|| format!("write {name}"))?;
        }
        let etcd = Process::start(&mut etcd(&upstream.join("etcd"), folder.path())?, &file("etcd.log"))?;
        let apiserver = Process::start(&mut apiserver(folder.path()), &file("kube-apiserver.log"))?;
        let mut server = Self { operators: None, apiserver, _etcd: etcd, folder, authority };
        server.wait_served().await?;
        server.bring_in()?;
        Ok(server)
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn administrator(&self) -> Result<Client> {
        let Leaf { certificate, key } = self.authority.client("bench", pki::ADMINISTRATORS)?;
        let identity = Identity::from_pem(&self.authority.certificate, &certificate, &key)?;
        Ok(garboard_api_client::client(address().parse::<Uri>()?, identity, Outage::default()))
    }

    /// Starts the operators.
    ///
    /// # Errors
    /// When their program is not there.
    pub fn start_operators(&mut self) -> Result<()> {
        let run = self.folder.path().join("run");
        let keys = run.join("garboard/pki/operators");
        fs::create_dir_all(&keys).context("make a folder")?;
        let Leaf { certificate, key } = self.authority.client(OPERATORS, OPERATORS)?;
        for (name, content) in [("ca.crt", &self.authority.certificate), ("tls.crt", &certificate), ("tls.key", &key)] {
            fs::write(keys.join(name), content).with_context(|| format!("write {name}"))?;
        }
        // Their keys are below /run, so they have one of their own.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--", "sh", "-c", r#"mount --bind "$0" /run && exec "$@""#])
            .arg(&run)
            .arg(program()?)
            .args(["cluster", "bench"]);
        self.operators = Some(Process::start(&mut command, &self.folder.path().join("operators.log"))?);
        Ok(())
    }

    /// What the operators have used.
    ///
    /// # Errors
    /// When they do not run.
    pub fn usage(&self) -> Result<Usage> {
        let operators = self.operators.as_ref().context("the operators are not started")?;
        operators.usage().with_context(|| format!("look at the operators; they said last: {}", operators.last_lines()))
    }

    /// What the operators have asked for.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests(&self) -> Result<Requests> {
        Requests::of_audit_log(&self.folder.path().join("audit.log"))
    }

    async fn wait_served(&mut self) -> Result<()> {
        let client = self.administrator()?;
        let start = Instant::now();
        loop {
            let ready = client.request_text(Request::get("/readyz").body(Vec::new())?);
            if let Ok(Ok(_)) = timeout(Duration::from_secs(5), ready).await {
                return Ok(());
            }
            if start.elapsed() > LIMIT || self.apiserver.has_ended() {
                bail!("the API server does not serve; it said last: {}", self.apiserver.last_lines());
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// Brings in the resources' definitions as the operators' program has them, the Cluster, and the operators' rights.
    fn bring_in(&self) -> Result<()> {
        let definitions = output(Command::new(program()?).arg("crds"))?;
        let file = self.folder.path().join("crds.yaml");
        fs::write(&file, definitions.stdout).context("write the definitions")?;
        self.kubectl(&["apply", "--server-side", "--filename"], &file)?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "--filename"], &file)?;
        let file = self.folder.path().join("objects.json");
        let objects = json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": [
                { "apiVersion": "garboard.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "cluster" }, "spec": {} },
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "ClusterRoleBinding",
                    "metadata": { "name": OPERATORS },
                    "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
                    "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": OPERATORS }],
                },
            ],
        });
        fs::write(&file, objects.to_string()).context("write the objects")?;
        self.kubectl(&["apply", "--server-side", "--filename"], &file)
    }

    fn kubectl(&self, arguments: &[&str], file: &Path) -> Result<()> {
        let config = self.folder.path().join("kubeconfig");
        if !config.exists() {
            let Leaf { certificate, key } = self.authority.client("kubectl", pki::ADMINISTRATORS)?;
            for (name, content) in [("kubectl.crt", certificate), ("kubectl.key", key)] {
                fs::write(self.folder.path().join(name), content).with_context(|| format!("write {name}"))?;
            }
            let text = pki::kubeconfig(&address(), self.folder.path(), "kubectl");
            fs::write(&config, text).context("write a kubeconfig")?;
        }
        let mut kubectl = Command::new(self.folder.path().join("kubectl"));
        kubectl.arg("--kubeconfig").arg(&config).arg("--cache-dir").arg(self.folder.path().join("cache"));
        output(kubectl.args(arguments).arg(file)).map(drop)
    }
}

/// A program that ends with the value.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("run {}", command.get_program().display()))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn usage(&self) -> Result<Usage> {
        let read = |name: &str| {
            let path = format!("/proc/{}/{name}", self.child.id());
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let mib = |text: &str, field: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<f64>().ok());
            Ok(kib.with_context(|| format!("no {field}"))? / KIB_PER_MIB)
        };
        // The program's name, which may have spaces, stands between parentheses; user and system time are fields 14 and 15.
        let stat = read("stat")?;
        let fields = stat.rsplit_once(')').context("no program's name")?.1.split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
        Ok(Usage {
            cpu: ticks.iter().sum::<f64>() / TICKS,
            pss: mib(&read("smaps_rollup")?, "Pss")?,
            peak: mib(&read("status")?, "VmHWM")?,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is over with the measurement either way.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The image's own program.
fn program() -> Result<PathBuf> {
    let program = top().join("target/image/programs/garboard-operators");
    ensure!(program.exists(), "{} is missing: run image/build first", program.display());
    Ok(program)
}

/// The folder of the image's upstream programs as `image/build` keeps them.
fn upstream() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("GARBOARD_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("garboard")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/garboard")))
        .context("HOME is not set")?;
    let folder = variable("GARBOARD_UPSTREAM").unwrap_or_else(|| cache.join("upstream/bin"));
    ensure!(folder.join("kubernetes").exists(), "no programs in {}: run image/build first", folder.display());
    Ok(folder)
}

fn address() -> String {
    format!("https://{ADDRESS}:{PORT}")
}

fn etcd(program: &Path, folder: &Path) -> Result<Command> {
    let peer = format!("http://{ADDRESS}:{}", TcpListener::bind((ADDRESS, 0))?.local_addr()?.port());
    let client = store(folder);
    let mut command = Command::new(program);
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
    Ok(command)
}

/// The store's socket.
fn store(folder: &Path) -> String {
    format!("unix://{}", folder.join("etcd.sock").display())
}

fn apiserver(folder: &Path) -> Command {
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
    let mut command = Command::new(folder.join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers={}", store(folder)))
        .arg(format!("--bind-address={ADDRESS}"))
        .arg(format!("--secure-port={PORT}"))
        // It refuses to tell others of a loopback address; nobody asks for it.
        .arg("--advertise-address=192.0.2.1")
        .arg(file("client-ca-file", "ca.crt"))
        .arg(file("tls-cert-file", "server.crt"))
        .arg(file("tls-private-key-file", "server.key"))
        .arg(file("service-account-key-file", "service-account.pub"))
        .arg(file("service-account-signing-key-file", "service-account.key"))
        .arg(file("audit-policy-file", "audit-policy.json"))
        .arg(file("audit-log-path", "audit.log"))
        .args(["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16"])
        .args(["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]);
    command
}

/// Everything that the operators ask for, with what they write, when it is answered.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Request", "users": [OPERATORS] }, { "level": "None" }],
    })
}

fn output(command: &mut Command) -> Result<Output> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}
