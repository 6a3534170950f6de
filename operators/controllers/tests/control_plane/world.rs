//! A machine's paths and ports for one test: mounts, network and processes of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use garboard_api::ClusterSpec;
use garboard_api::machine::MachineRole;
use garboard_api_client::{Identity, Outage};
use garboard_catalog::kubeconfig::LOCAL_APISERVER;
use garboard_catalog::pki::Leaf;
use garboard_catalog::{CatalogInput, EtcdFacts, NodeFacts, input, services};
use garboard_controllers::pki::PkiStore;
use garboard_controllers::{addons, revocations};
use garboard_plan::pki::{PkiInput, desired};
use garboard_supervisor::spec::ServiceSpec;
use http::Uri;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

const INSIDE: &str = "GARBOARD_TEST_INSIDE";
const LIMIT: Duration = Duration::from_secs(180);
/// Time given to a service that is to end.
const GRACE: Duration = Duration::from_secs(10);
const NOTIFY_SOCKET: &str = "/run/garboard/notify";
const PROGRAMS: &str = "/run/programs";
const ADDRESS: &str = "192.0.2.10";

/// Runs `test`, the body of the test named `name`, in namespaces of its own. Without the image's programs it says so and does nothing.
pub fn inside<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    let (Some(programs), Some(_)) = (programs(), executor()) else {
        eprintln!("skipped: no programs; `tests/run image unit` makes them and tells where they are");
        return;
    };
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("GARBOARD_UPSTREAM", programs)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The machine's own executor; the other programs of ours lie beside it.
fn executor() -> Option<PathBuf> {
    std::env::var_os("GARBOARD_INIT").map(PathBuf::from)
}

fn programs() -> Option<PathBuf> {
    let folder = match std::env::var_os("GARBOARD_UPSTREAM") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/garboard/upstream/bin"),
    };
    folder.join("kubernetes").exists().then_some(folder)
}

/// A machine's services, keys and settings.
pub struct World {
    pub input: CatalogInput,
    /// Its keys and certificates.
    pub pki: PkiStore,
    notifications: UnixDatagram,
    running: BTreeMap<String, Child>,
}

impl World {
    /// Empty places where the machine has its own, an address, and everything that the agent makes before it starts services.
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Held open, because the clone may lie below one of the folders that are hidden now.
        let users = ["passwd", "group"].map(|name| {
            let image = format!("{}/../../image/mkosi.extra/final/etc/{name}", env!("CARGO_MANIFEST_DIR"));
            (format!("/etc/{name}"), File::open(image).unwrap())
        });
        for path in ["/run", "/tmp", "/var/lib", "/var/log"] {
            run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", path]);
        }
        // The users of the services may not reach the folder that the programs lie in.
        fs::create_dir(PROGRAMS).unwrap();
        for name in ["kubernetes", "etcd", "containerd", "containerd-shim-runc-v2", "runc"] {
            let own = format!("{PROGRAMS}/{name}");
            File::create(&own).unwrap();
            run("mount", &["--bind", programs().unwrap().join(name).to_str().unwrap(), &own]);
        }
        for name in ["garboard-balancer", "garboard-cni", "garboard-dns", "garboard-operators"] {
            let own = format!("{PROGRAMS}/{name}");
            File::create(&own).unwrap();
            run("mount", &["--bind", executor().unwrap().with_file_name(name).to_str().unwrap(), &own]);
        }
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "outside"]);
        run("ip", &["address", "add", "192.0.2.10/24", "dev", "eth0"]);
        run("ip", &["link", "set", "eth0", "up"]);
        run("ip", &["link", "set", "outside", "up"]);
        run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
        for (path, image) in &users {
            let held = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
            run("mount", &["--no-canonicalize", "--bind", &held, path]);
        }
        fs::create_dir_all("/run/garboard/services").unwrap();
        let notifications = UnixDatagram::bind(NOTIFY_SOCKET).unwrap();
        notifications.set_nonblocking(true).unwrap();
        fs::set_permissions(NOTIFY_SOCKET, fs::Permissions::from_mode(0o666)).unwrap();
        let mut cluster = ClusterSpec::default();
        // Everything, in full: what is kept from the log all the same is Garboard's own doing.
        cluster.control_plane.api_server.audit_rules =
            serde_json::from_value(json!([{ "level": "RequestResponse" }])).unwrap();
        let input = CatalogInput {
            cluster,
            machine: Default::default(),
            node: NodeFacts {
                name: "node-1".to_owned(),
                addresses: vec![ADDRESS.parse().unwrap()],
                memory_bytes: 2 << 30,
                pod_cidrs: Vec::new(),
                api_servers: Vec::new(),
                peers: Vec::new(),
                etcd: Some(EtcdFacts { votes: true, ..EtcdFacts::default() }),
            },
            pause_image: "garboard.dev/pause:test".to_owned(),
        };
        let world = Self {
            input,
            pki: PkiStore::new("/run/state/pki", "/run/garboard/pki"),
            notifications,
            running: BTreeMap::new(),
        };
        world.issue();
        revocations::write([].into_iter()).unwrap();
        world
    }

    fn issue(&self) {
        self.pki.reconcile(&desired(&self.pki_input()), SystemTime::now()).unwrap();
    }

    /// What the machine's certificates depend on.
    pub fn pki_input(&self) -> PkiInput {
        let CatalogInput { cluster, node, .. } = &self.input;
        PkiInput {
            role: MachineRole::ControlPlane,
            joins: false,
            node_name: node.name.clone(),
            node_addresses: node.addresses.clone(),
            service_addresses: Vec::from_iter(input::apiserver_service_address(cluster)),
            dns_domain: cluster.dns_domain.clone(),
            apiserver_names: cluster.cert_sans.clone(),
        }
    }

    /// Issues every certificate again.
    pub fn reissue(&self) {
        for leaf in Leaf::ALL {
            fs::remove_file(format!("/run/state/pki/{}.pem", leaf.name())).unwrap();
        }
        self.issue();
    }

    /// Starts a service as its specification says, through the machine's own executor and so confined as on the machine.
    pub fn start(&mut self, name: &str) {
        let specs = services(&self.input).unwrap();
        let mut spec = specs.into_iter().find(|spec| spec.name.as_str() == name).unwrap();
        let program = program(&spec.argv[0]);
        // To be killed last and to have more files open are rights that root in a container often lacks.
        spec.cgroup.oom_score_adj = 0;
        spec.rlimit_nofile = 4096;
        let path = std::mem::replace(&mut spec.argv[0], program);
        spec.argv0.get_or_insert(path);
        let log = File::create(format!("/var/log/{name}.log")).unwrap();
        self.running.insert(name.to_owned(), launch(executor().unwrap(), &spec, log));
    }

    /// Asks a service to end, and ends it after the time that PID 1 would give it.
    pub fn stop(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        if child.try_wait().unwrap().is_some() {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let asked = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if asked.elapsed() > GRACE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a service has ended, and then whether it has done what it was to do.
    pub fn ended(&mut self, name: &str) -> Option<bool> {
        self.running.get_mut(name).unwrap().try_wait().unwrap().map(|status| status.success())
    }

    /// The services that were started and not stopped.
    pub fn started(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    /// What a service has written.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(format!("/var/log/{name}.log")).unwrap()
    }

    /// Whether a service has said that it is ready since the last call. Only services that the executor started have somewhere to say it.
    pub fn notified(&self) -> bool {
        let mut message = [0; 256];
        std::iter::from_fn(|| self.notifications.recv(&mut message).ok().map(|n| message[..n].to_vec()))
            .any(|message| message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1"))
    }

    /// Whether every service that was started still runs.
    pub fn all_alive(&mut self) -> bool {
        self.running.values_mut().all(|child| child.try_wait().unwrap().is_none())
    }

    /// A client that may do everything.
    pub fn administrator(&self) -> kube::Client {
        addons::administrator(&self.pki, server(), Outage::default(), SystemTime::now()).unwrap()
    }

    /// What kubectl says to somebody who may do everything.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let (certificate, key) = ("/run/kubectl.crt", "/run/kubectl.key");
        if !Path::new(key).exists() {
            let pair = KeyPair::generate().unwrap();
            let (public, hour) = (pair.subject_public_key_info(), Duration::from_secs(3600));
            let signed = self.pki.sign_client(&public, "kubectl", "system:masters", hour, SystemTime::now()).unwrap();
            fs::write(certificate, signed).unwrap();
            fs::write(key, pair.serialize_pem()).unwrap();
        }
        let output = Command::new(format!("{PROGRAMS}/kubernetes"))
            .arg0("kubectl")
            .args(["--server=https://127.0.0.1:6443", &format!("--certificate-authority={}", Leaf::Agent.ca_file())])
            .args([format!("--client-certificate={certificate}"), format!("--client-key={key}")])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A client with a certificate of the machine.
    pub fn client(&self, leaf: Leaf) -> kube::Client {
        garboard_api_client::client(server(), Identity::Folder(leaf.folder().into()), Outage::default())
    }

    /// Whether `GET` answers 200.
    pub fn ready(&self, url: &str) -> bool {
        self.status(url, None) == 200
    }

    /// The status of the answer to `GET`; 0 when there is none.
    pub fn status(&self, url: &str, client: Option<Leaf>) -> u16 {
        get(url, client).map_or(0, |(status, _)| status)
    }

    /// The status of the answer to `GET` without TLS; 0 when there is none.
    pub fn plain_status(&self, address: &str, path: &str) -> u16 {
        let Ok(mut stream) = TcpStream::connect(address) else { return 0 };
        status(&mut stream, address, path).unwrap_or(0)
    }

    /// The certificate that a server shows.
    pub fn certificate(&self, url: &str) -> Option<Vec<u8>> {
        get(url, None).map(|(_, certificate)| certificate)
    }

    /// Everything that etcd has on disk.
    pub fn etcd_files(&self) -> Vec<u8> {
        fn read(folder: &Path, into: &mut Vec<u8>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    read(&path, into);
                } else {
                    into.extend(fs::read(&path).unwrap());
                }
            }
        }
        let mut bytes = Vec::new();
        read(Path::new("/var/lib/etcd"), &mut bytes);
        bytes
    }

    /// Waits until `condition` holds.
    pub async fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        self.wait_for(what, || async { condition().then_some(()) }).await;
    }

    /// Waits until `attempt` has a result.
    pub async fn wait_for<T, F: Future<Output = Option<T>>>(&self, what: &str, attempt: impl Fn() -> F) -> T {
        let start = Instant::now();
        loop {
            if let Some(result) = attempt().await {
                eprintln!("{what}: {:.1} s", start.elapsed().as_secs_f32());
                return result;
            }
            if start.elapsed() > LIMIT {
                for name in self.running.keys() {
                    let log = self.log(name);
                    let lines: Vec<_> = log.lines().collect();
                    eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
                }
                panic!("{what}: not within {LIMIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn program(path: &str) -> String {
    let name = path.rsplit_once('/').unwrap().1;
    let own = format!("{PROGRAMS}/{name}");
    if Path::new(&own).exists() { own } else { format!("{PROGRAMS}/kubernetes") }
}

fn launch(executor: PathBuf, spec: &ServiceSpec, log: File) -> Child {
    let order = json!({ "spec": spec, "task": "run", "cgroup": null, "notifySocket": NOTIFY_SOCKET });
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(executor)
        .arg("launch")
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    ours.write_all(order.to_string().as_bytes()).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut failure = String::new();
    ours.read_to_string(&mut failure).unwrap();
    assert_eq!(failure, "", "{}", spec.name);
    child
}

fn server() -> Uri {
    Uri::from_static(LOCAL_APISERVER)
}

fn certificates(path: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

fn get(url: &str, client: Option<Leaf>) -> Option<(u16, Vec<u8>)> {
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let mut roots = RootCertStore::empty();
    let trust = if address.port() == 2379 { Leaf::EtcdProbe } else { Leaf::Agent };
    roots.add_parsable_certificates(certificates(&trust.ca_file()));
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match client {
        Some(leaf) => config
            .with_client_auth_cert(
                certificates(&leaf.cert_file()),
                PrivateKeyDer::from_pem_file(leaf.key_file()).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let connection = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).unwrap();
    let socket = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    let status = status(&mut stream, &address.to_string(), &format!("/{path}"))?;
    Some((status, stream.conn.peer_certificates()?.first()?.to_vec()))
}

fn status(stream: &mut (impl Read + Write), host: &str, path: &str) -> Option<u16> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    std::str::from_utf8(&answer[9..]).ok()?.parse().ok()
}

/// The answer to a query for the IPv4 address of `name`, as it comes.
pub fn lookup(server: &str, name: &str) -> Vec<u8> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len().try_into().unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&query, server).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    answer[..length].to_vec()
}

/// What kubelet asks the cluster to sign.
pub fn serving_request(node: &str, address: &str) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names =
        vec![SanType::DnsName(node.try_into().unwrap()), SanType::IpAddress(address.parse().unwrap())];
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    serde_json::from_value(json!({
        "metadata": { "generateName": "csr-" },
        "spec": {
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
            "request": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem),
        },
    }))
    .unwrap()
}

/// A folder with the archive of one small image, packed as `image/build` packs those of a release.
pub fn archives() -> PathBuf {
    let folder = PathBuf::from("/run/images");
    fs::create_dir(&folder).unwrap();
    fs::write("/run/garboard-probe", "one").unwrap();
    pack(&folder);
    folder
}

/// Another content under the same name.
pub fn change_archive(folder: &Path) {
    fs::write("/run/garboard-probe", "two").unwrap();
    pack(folder);
}

fn pack(folder: &Path) {
    let packer = concat!(env!("CARGO_MANIFEST_DIR"), "/../../image/steps/oci.py");
    let output = folder.join("probe.tar");
    run(
        "python3",
        &[
            packer,
            "--name",
            "garboard.dev/probe:test",
            "--program",
            "/run/garboard-probe",
            "--output",
            output.to_str().unwrap(),
        ],
    );
}
