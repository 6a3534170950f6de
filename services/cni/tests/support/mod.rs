//! A machine with pods, in network namespaces of its own: nothing of it outlives the test, and tests run side by side.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

pub mod offload;
pub mod underlay;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use garboard_cni::attachment::mac_of;
use garboard_sys::netlink::{Address, BridgePort, MAIN_TABLE, Netlink, Route, VethPair};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

pub const LIMIT: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(2);
const PROGRAM: &str = env!("CARGO_BIN_EXE_garboard-cni");
/// Index of `lo` in every network namespace.
pub const LOOPBACK: u32 = 1;

/// A network namespace that lives as long as this value.
pub struct Netns(OwnedFd);

impl Netns {
    pub fn new() -> Self {
        let opened = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(opened.join().unwrap().into());
        netns.netlink(async |netlink| netlink.set_up(LOOPBACK).await.unwrap());
        netns
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Runs something on a thread inside.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                inside()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// Runs something with the kernel's links, addresses and routes inside.
    pub fn netlink<T>(&self, inside: impl AsyncFnOnce(&mut Netlink) -> T) -> T {
        runtime().block_on(async { inside(&mut Netlink::open_in(self.0.as_fd()).unwrap()).await })
    }

    /// A TCP server that tells each client the address it sees.
    pub fn tcp_mirror(&self, address: &str) {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = stream.write_all(peer.to_string().as_bytes());
            }
        });
    }

    /// The same by UDP.
    pub fn udp_mirror(&self, address: &str) {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
            }
        });
    }

    /// What a mirror sees when it is asked from here.
    pub fn tcp(&self, to: &str) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut seen = String::new();
            stream.read_to_string(&mut seen)?;
            Ok(seen)
        })
    }

    pub fn udp(&self, to: &str) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }

    /// A client that keeps one socket, as clients do that send all the time.
    pub fn udp_client(&self, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.connect(to).unwrap();
            socket
        })
    }

    /// One ICMP echo.
    pub fn ping(&self, to: &str) -> bool {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        let to: IpAddr = to.parse().unwrap();
        self.run(|| {
            let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
            let socket = UdpSocket::from(fd);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((to, 0)).unwrap();
            // Echo request, identifier and sequence 0: the checksum is the complement of the first word.
            if socket.send(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]).is_err() {
                return false;
            }
            let mut buffer = [0; 128];
            // The answer comes with its IP header of 20 bytes; who asks itself sees the request, too.
            while let Ok(length) = socket.recv(&mut buffer) {
                if length >= 28 && buffer[20] == 0 {
                    return true;
                }
            }
            false
        })
    }
}

fn runtime() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub async fn index(netlink: &mut Netlink, name: &str) -> u32 {
    netlink.link(name).await.unwrap().unwrap_or_else(|| panic!("no link {name}")).index
}

pub fn address(index: u32, address: &str) -> Address {
    Address { index, address: address.parse().unwrap(), protocol: 0, unique: true }
}

pub fn route(index: u32, destination: &str, gateway: [u8; 4]) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: Some(gateway.into()),
        index,
        metric: 0,
        table: MAIN_TABLE,
        protocol: 0,
    }
}

static NEXT_POD: AtomicU32 = AtomicU32::new(1);

/// A pod: a namespace and a container identifier.
pub struct Pod {
    pub netns: Netns,
    pub id: String,
}

impl Pod {
    pub fn new() -> Self {
        Self { netns: Netns::new(), id: format!("pod{:060x}", NEXT_POD.fetch_add(1, Ordering::Relaxed)) }
    }
}

/// What a plugin printed, and whether it succeeded.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub text: String,
}

impl Outcome {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    /// The code of a failure.
    pub fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json()["code"].as_u64().unwrap()
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.success, "{self:?}");
        self
    }

    /// The first address of a result, without prefix.
    pub fn address(&self) -> String {
        self.json()["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
    }
}

/// A machine: a namespace, directories and the daemon.
pub struct Machine {
    pub netns: Netns,
    pub directory: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

impl Machine {
    /// A machine whose daemon does not run.
    pub fn prepare() -> Self {
        let machine = Self { netns: Netns::new(), directory: tempfile::tempdir().unwrap(), daemon: None };
        std::fs::create_dir(machine.path("config")).unwrap();
        machine
    }

    /// A machine with this configuration that is ready.
    pub fn start(config: Value) -> Self {
        let mut machine = Self::prepare();
        machine.configure(&config);
        machine.run_daemon();
        machine.wait_ready();
        machine
    }

    pub fn simple() -> Self {
        Self::start(json!({"podCIDRs": ["10.244.0.0/24"], "clusterCIDRs": ["10.244.0.0/16"]}))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn configure(&self, config: &Value) {
        std::fs::write(self.path("config/new"), config.to_string()).unwrap();
        std::fs::rename(self.path("config/new"), self.path("config/config.json")).unwrap();
    }

    pub fn run_daemon(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.arg("daemon").arg("--config").arg(self.path("config/config.json"));
        command.arg("--socket").arg(self.path("cni.sock")).arg("--state").arg(self.path("state"));
        command.arg("--networks").arg(self.path("net.d")).env("NOTIFY_SOCKET", self.path("notify"));
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.env_remove("CNI_COMMAND").stdin(Stdio::null()).stderr(log);
        self.daemon = Some(self.netns.run(|| command.spawn().unwrap()));
    }

    /// What its daemons have told.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Stops the daemon and returns whether it ended by itself without error.
    pub fn stop(&mut self, signal: Signal) -> bool {
        let Some(mut daemon) = self.daemon.take() else { return true };
        kill(Pid::from_raw(daemon.id() as i32), signal).unwrap();
        daemon.wait().unwrap().success()
    }

    pub fn wait_ready(&self) {
        wait_for("the daemon to be ready", || self.plugin("STATUS", &[], &self.config(&[])).success);
    }

    /// The configuration that a runtime hands over, with these host ports.
    pub fn config(&self, ports: &[Value]) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "garboard", "type": "garboard",
            "runtimeConfig": {"portMappings": ports},
        })
    }

    pub fn plugin(&self, command: &str, variables: &[(&str, &str)], config: &Value) -> Outcome {
        self.plugin_with_input(command, variables, &config.to_string())
    }

    pub fn plugin_with_input(&self, command: &str, variables: &[(&str, &str)], input: &str) -> Outcome {
        let mut process = Command::new(PROGRAM);
        process.env_clear().env("CNI_COMMAND", command).env("GARBOARD_CNI_SOCKET", self.path("cni.sock"));
        process.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().unwrap();
        // A plugin that refuses its environment does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Outcome { success: output.status.success(), text: String::from_utf8(output.stdout).unwrap() }
    }

    pub fn for_pod(&self, command: &str, pod: &Pod, config: &Value) -> Outcome {
        let path = pod.netns.path();
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.id);
        let variables = [
            ("CNI_CONTAINERID", pod.id.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &path),
            ("CNI_ARGS", &arguments),
        ];
        self.plugin(command, &variables, config)
    }

    #[track_caller]
    pub fn add(&self, pod: &Pod) -> Outcome {
        self.add_with_ports(pod, &[])
    }

    #[track_caller]
    pub fn add_with_ports(&self, pod: &Pod, ports: &[Value]) -> Outcome {
        self.for_pod("ADD", pod, &self.config(ports)).ok()
    }

    pub fn del(&self, pod: &Pod) -> Outcome {
        self.for_pod("DEL", pod, &self.config(&[]))
    }

    pub fn check(&self, pod: &Pod, result: &Outcome) -> Outcome {
        let mut config = self.config(&[]);
        config["prevResult"] = result.json();
        self.for_pod("CHECK", pod, &config)
    }

    /// A neighbour machine on a network of its own, which knows no way to the pods: it is 192.0.2.2, this machine is
    /// 192.0.2.1.
    pub fn outside(&self) -> Netns {
        let outside = Netns::new();
        self.netns.netlink(async |netlink| {
            netlink.add_bridge("out0", mac_of([192, 0, 2, 1].into()), 1500).await.unwrap();
            let bridge = index(netlink, "out0").await;
            netlink.set_up(bridge).await.unwrap();
            netlink.add_address(&address(bridge, "192.0.2.1/24")).await.unwrap();
            let pair = VethPair {
                name: "outside",
                alias: "outside",
                bridge,
                port: BridgePort { hairpin: false, isolated: false },
                peer: "eth0",
                peer_mac: mac_of([192, 0, 2, 2].into()),
                peer_namespace: outside.fd().as_fd(),
                mtu: 1500,
            };
            netlink.add_veth(&pair).await.unwrap();
            netlink.add_route(&route(bridge, "0.0.0.0/0", [192, 0, 2, 2])).await.unwrap();
        });
        outside.netlink(async |netlink| {
            let interface = index(netlink, "eth0").await;
            netlink.set_up(interface).await.unwrap();
            netlink.add_address(&address(interface, "192.0.2.2/24")).await.unwrap();
        });
        outside
    }

    pub fn reservations(&self) -> usize {
        std::fs::read_dir(self.path("state")).unwrap().count()
    }

    /// The ends of pods' interfaces on this machine.
    pub fn host_links(&self) -> usize {
        self.netns.run(|| runtime().block_on(garboard_cni::backend::host_links()).unwrap().len())
    }
}

/// Waits until a condition holds.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
