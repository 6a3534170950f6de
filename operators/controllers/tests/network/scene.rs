//! A machine (the test's own thread in fresh namespaces) and, over a veth that counts as hardware, a network with a DHCP server.

use std::fs::{self, File};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use garboard_controllers::network::{Network, NetworkConfig, NetworkPaths, NodeAddresses};
use garboard_plan::network::Config;
use garboard_sys::netlink::{Address, Netlink};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

static SCENES: AtomicU32 = AtomicU32::new(0);

/// The stage of one test.
pub struct Scene {
    directory: tempfile::TempDir,
    outside: String,
    server: Option<Child>,
    monitor: Option<Child>,
    config: watch::Sender<NetworkConfig>,
    node: Option<watch::Receiver<NodeAddresses>>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Scene {
    /// Runs a test on a thread in network, UTS and mount namespaces of its own: link `eth0` inside, `peer` outside.
    pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Scene) -> F + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let number = SCENES.fetch_add(1, Ordering::Relaxed);
            let outside = format!("garboard-{}-{number}", std::process::id());
            command(&format!("ip netns add {outside}"));
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).unwrap();
            command(&format!("ip link add eth0 address 02:00:00:00:00:07 type veth peer name peer netns {outside}"));
            let scene = Scene {
                directory: tempfile::tempdir().unwrap(),
                outside,
                server: None,
                monitor: None,
                config: watch::Sender::new(NetworkConfig { hostname: "keel".to_owned(), network: Config::default() }),
                node: None,
                running: None,
            };
            scene.outside("link set dev lo up");
            scene.outside("addr add 192.0.2.1/24 dev peer");
            scene.outside("link set dev peer up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(scene));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Starts dnsmasq outside for 192.0.2.0/24 with further arguments.
    pub fn serve(&mut self, arguments: &[&str]) {
        self.serve_subnet("192.0.2", arguments);
    }

    /// Starts dnsmasq outside for a /24.
    pub fn serve_subnet(&mut self, prefix: &str, arguments: &[&str]) {
        let log = self.path("server.log");
        let server = Command::new("ip")
            .args(["netns", "exec", &self.outside, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"])
            .args(["--port=0", "--no-ping", "--leasefile-ro", "--log-dhcp", "--interface=peer", "--user=root"])
            .arg(format!("--pid-file={}", self.path("server.pid").display()))
            .arg(format!("--log-facility={}", log.display()))
            .arg(format!("--dhcp-range={prefix}.50,{prefix}.99,255.255.255.0,2m"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.server = Some(server);
    }

    /// A further link inside, with its other end outside.
    pub fn add_link(&self, name: &str, peer: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer} netns {}", self.outside));
        self.outside(&format!("link set dev {peer} up"));
    }

    /// Has the server's network behind another link.
    pub fn move_network(&self, from: &str, to: &str) {
        self.outside(&format!("addr del 192.0.2.1/24 dev {from}"));
        self.outside(&format!("addr add 192.0.2.1/24 dev {to}"));
    }

    /// Ends dnsmasq.
    pub fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            end(server);
        }
    }

    /// What dnsmasq said.
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    /// The addresses that [`Scene::serve`] gives.
    pub fn pool(&self) -> Vec<IpAddr> {
        (50..=99).map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    /// Starts the controller with a declaration.
    pub fn start(&mut self, network: Config) {
        self.declare(network);
        self.start_undeclared();
    }

    /// Starts the controller as a restarted agent does, which knows no declaration yet.
    pub fn restart_undeclared(&mut self) {
        self.config = watch::Sender::default();
        self.start_undeclared();
    }

    fn start_undeclared(&mut self) {
        let paths = NetworkPaths { etc: self.path("etc"), state: self.path("state"), keys: self.path("keys") };
        let (controller, node) = Network::new(self.config.subscribe(), paths).unwrap();
        let controller = controller.with_hardware("veth");
        let stop = CancellationToken::new();
        let run = controller.run(stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        self.node = Some(node);
        self.running = Some((stop, task));
    }

    /// Stops the controller.
    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    /// Declares another network.
    pub fn declare(&self, network: Config) {
        self.config.send_modify(|config| config.network = network);
    }

    /// What the controller published last.
    pub fn node(&self) -> NodeAddresses {
        self.node.as_ref().unwrap().borrow().clone()
    }

    /// Waits until the controller publishes what is looked for.
    pub async fn wait(&self, what: &str, mut found: impl FnMut(&NodeAddresses) -> bool) -> NodeAddresses {
        let mut node = self.node.clone().unwrap();
        let waited = tokio::time::timeout(LIMIT, node.wait_for(|node| found(node))).await;
        match waited {
            Ok(node) => node.unwrap().clone(),
            Err(_) => panic!("no {what}: {:?}\n{}", self.node(), self.server_log()),
        }
    }

    /// Waits until a look at the scene finds what is looked for.
    pub async fn until(&self, what: &str, found: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !found(self) {
            assert!(tokio::time::Instant::now() < deadline, "not so: {what}\n{}", self.server_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        command(&format!("ip {arguments}"))
    }

    /// Runs `ip` inside; what it says when it fails is the error.
    pub fn try_ip(&self, arguments: &str) -> Result<String, String> {
        let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
        let said = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(said(output.stdout)) } else { Err(said(output.stderr)) }
    }

    /// Runs `ip` outside.
    pub fn outside(&self, arguments: &str) -> String {
        command(&format!("ip -netns {} {arguments}", self.outside))
    }

    /// Adds an address to `eth0` with a mark of its maker, which older `ip` cannot give.
    pub async fn add_address(&self, address: &str, protocol: u8) {
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("eth0").await.unwrap().unwrap().index;
        let address = Address { index, address: address.parse().unwrap(), protocol, unique: false };
        netlink.add_address(&address).await.unwrap();
    }

    /// A file of `/etc` as the controller wrote it.
    pub fn etc(&self, name: &str) -> String {
        fs::read_to_string(self.path("etc").join(name)).unwrap()
    }

    /// Records every address and route that is removed inside from now on.
    pub fn watch_removals(&mut self) {
        let file = File::create(self.path("monitor.log")).unwrap();
        let monitor = Command::new("ip").args(["-4", "monitor", "address", "route"]).stdout(file).spawn().unwrap();
        self.monitor = Some(monitor);
    }

    /// What was removed since [`Scene::watch_removals`].
    pub fn removals(&self) -> String {
        let log = fs::read_to_string(self.path("monitor.log")).unwrap();
        log.lines().filter(|line| line.starts_with("Deleted")).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop_server();
        if let Some(monitor) = self.monitor.take() {
            end(monitor);
        }
        command(&format!("ip netns del {}", self.outside));
    }
}

fn end(mut child: Child) {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let _ = child.wait();
}

fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
