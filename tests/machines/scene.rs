//! What scenarios share: the machine that was booted once, and how a scenario becomes a trial.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::lan::{Forward, Lan};
use garboard_tests::machine::{Hardware, Machine, Ports};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time for a pod to do what it is meant to: three times what is usual under emulation.
pub const POD_LIMIT: Duration = Duration::from_secs(120);

/// The name under which the Ready machine is saved.
pub const READY: &str = "ready";

/// A place for another machine on the network of the Ready one.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number on the link.
    pub number: u8,
    /// Its address.
    pub address: Ipv4Addr,
    /// The host's ports that lead to it.
    pub ports: Ports,
}

impl Place {
    /// The place with a number, from 2 to 8, and the address that DHCP gives to the machine there, if those before it have asked.
    fn new(number: u8) -> Result<Self> {
        Ok(Self { number, address: Ipv4Addr::new(10, 0, 2, 14 + number), ports: Ports::free()? })
    }
}

impl Place {
    /// The hardware address of a machine there.
    pub fn mac_address(self) -> String {
        Machine::mac_address(self.number)
    }

    /// The network of a Machine there.
    fn network(self) -> Value {
        json!({ "links": [{
            "match": { "name": "eth0" },
            "addresses": [format!("{}/{}", self.address, Lan::PREFIX)],
            "gateway": Lan::ROUTER,
        }] })
    }
}

/// How much of the agent's log an error tells.
const AGENT_LINES: &str = "30";

/// A machine and the user's side of its cluster.
pub struct Scene {
    /// The machine.
    pub machine: Machine,
    /// Its cluster, with a kubeconfig once it was Ready.
    pub cluster: Cluster,
    /// The network that others can be on too.
    lan: Option<Lan>,
    /// Places for others.
    pub places: [Place; 2],
    /// The host's port that leads to the API server at [`Lan::VIRTUAL`], on a network that is shared.
    pub virtual_port: u16,
    directory: TempDir,
}

impl Scene {
    /// A machine that was never started, with manifests of its own.
    ///
    /// # Errors
    /// When the image is missing, or files cannot be made.
    pub fn new(hardware: Hardware) -> Result<Self> {
        let image = Image::latest()?;
        let Fresh { machine, cluster, directory } = Fresh::new(&image, hardware)?;
        let (places, virtual_port) = ([Place::new(2)?, Place::new(3)?], Ports::free()?.api);
        Ok(Self { machine, cluster, lan: None, places, virtual_port, directory })
    }

    /// The same on a network that another machine can be on too. What its router knows of connections is not part of a saved state.
    ///
    /// # Errors
    /// When the image is missing, files cannot be made, or the network does not start.
    fn on_lan(hardware: Hardware) -> Result<Self> {
        let mut scene = Self::new(hardware)?;
        let places = scene.places.iter().map(|place| (place.ports, place.address));
        let forwards = [(scene.machine.ports(), Lan::FIRST)].into_iter().chain(places).flat_map(|(ports, address)| {
            let forward = |host, port| Forward { host, address, port };
            [forward(ports.api, 6443), forward(ports.machine, 7443)]
        });
        let shared = Forward { host: scene.virtual_port, address: Lan::VIRTUAL, port: 6443 };
        let lan = Lan::start(scene.directory.path(), &forwards.chain([shared]).collect::<Vec<_>>())?;
        scene.machine.connect(&lan, 1);
        scene.lan = Some(lan);
        Ok(scene)
    }

    /// Its network.
    ///
    /// # Errors
    /// When it has one of its own.
    pub fn lan(&self) -> Result<&Lan> {
        self.lan.as_ref().context("the machine shares no network")
    }

    /// Powers on and waits until the node is Ready.
    ///
    /// # Errors
    /// When it does not get there in time; with the console's end.
    pub fn boot(&mut self) -> Result<()> {
        self.machine.start()?;
        self.wait_ready()
    }

    /// Waits until the machine API answers, fetches the kubeconfig and waits until the node is Ready and the cluster takes pods.
    ///
    /// # Errors
    /// When it does not get there in time; with the console's end.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.cluster
            .fetch_kubeconfig(READY_LIMIT)
            .and_then(|()| self.cluster.wait_ready(READY_LIMIT))
            .and_then(|()| self.cluster.wait_condition(&["clusters.garboard.dev", "cluster"], "Ready", READY_LIMIT))
            .with_context(|| self.account())
    }

    /// Declares the machine that is to be at a place, and that waits: `waiting` is what is known of it.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub fn declare_waiting(&self, name: &str, place: Place, role: &str, waiting: &Value) -> Result<()> {
        let machine = json!({
            "apiVersion": "garboard.dev/v1alpha1",
            "kind": "Machine",
            "metadata": { "name": name },
            "spec": { "role": role, "join": { "waiting": waiting }, "network": place.network() },
        });
        self.cluster.apply(&machine.to_string()).map(drop)
    }

    /// Makes the manifests with which a machine that waits at a place, with this key, joins; and claims it with them.
    ///
    /// # Errors
    /// When `garboardctl` refuses.
    pub fn claim(&self, name: &str, place: Place, key: &str, more: &[&str]) -> Result<()> {
        let key = format!("--key={key}");
        let (file, _) = self.join(name, place, &[&[key.as_str()], more].concat())?;
        self.cluster.garboardctl_ok(&["-m", name, "claim", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// The file with the manifests with which a machine at a place joins, and what `garboardctl join` said.
    ///
    /// # Errors
    /// When it refuses.
    pub fn join(&self, name: &str, place: Place, more: &[&str]) -> Result<(PathBuf, String)> {
        let at = format!("127.0.0.1:{}", place.ports.machine);
        let said = self.cluster.garboardctl_ok(&[&["-m", "node-1", "join", name, "--at", &at], more].concat())?;
        let file = format!("{name}.yaml");
        self.cluster.edit(&file, "network: {}", &format!("network: {}", place.network()))?;
        Ok((self.cluster.directory().join(file), said))
    }

    /// A machine at a place that is off and has no manifests, and so waits when it is on. Its files are in a folder of that name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn another(&self, name: &str, place: Place, hardware: Hardware) -> Result<Machine> {
        let mut machine = Machine::create(&Image::latest()?, &self.folder().join(name), hardware, Ports::free()?)?;
        machine.set_manifests(None);
        machine.connect(self.lan()?, place.number);
        Ok(machine)
    }

    /// A folder for the files of a scenario.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// What the machine said last, for an error: the console's end, and the agent's log if the machine API gives it.
    pub fn account(&self) -> String {
        let agent = self.cluster.garboardctl_ok(&["-m", "node-1", "logs", "-n", AGENT_LINES, "agent"]);
        let agent = agent.unwrap_or_else(|error| format!("{error:#}"));
        format!("the console's end:\n{}\nthe agent's log:\n{agent}", self.machine.console_end())
    }
}

/// A scenario, and which machine it is about.
pub struct Scenario {
    trial: Trial,
    /// Whether it makes machines of its own.
    cold: bool,
}

impl Scenario {
    /// The same, but run by its name alone if `ignored`.
    pub fn ignored(self, ignored: bool) -> Self {
        Self { trial: self.trial.with_ignored_flag(ignored), ..self }
    }
}

/// The trials of scenarios in the order in which they run: those that share the Ready machine first, so that it is booted once.
pub fn in_order(scenarios: impl IntoIterator<Item = Scenario>) -> Vec<Trial> {
    let (cold, shared): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(|scenario| scenario.cold);
    shared.into_iter().chain(cold).map(|scenario| scenario.trial).collect()
}

static SHARED: OnceLock<Mutex<Option<Scene>>> = OnceLock::new();

/// A scenario that starts from the Ready machine; what it changes is undone before the next one.
pub fn on_ready(name: &'static str, scenario: fn(&mut Scene) -> Result<()>) -> Scenario {
    let trial = timed(name, move || {
        let mut shared = SHARED
            .get_or_init(|| Mutex::new(None))
            .lock()
            .map_err(|_| Failed::from("an earlier scenario broke off"))?;
        let booted = shared.as_mut().is_some_and(|scene| scene.machine.is_on());
        if !booted {
            let mut scene = Scene::on_lan(Hardware::default()).map_err(failed)?;
            scene.boot().map_err(failed)?;
            scene.machine.save(READY).map_err(failed)?;
            *shared = Some(scene);
        }
        let scene = shared.as_mut().ok_or("no machine")?;
        if booted {
            scene.machine.load(READY).map_err(failed)?;
        }
        scene.cluster.wait_ready(READY_LIMIT).map_err(failed)?;
        scenario(scene).with_context(|| scene.account()).map_err(failed)
    });
    Scenario { trial, cold: false }
}

/// A scenario that makes machines of its own; the shared one is ended to give it the memory and the processors.
pub fn cold(name: &'static str, scenario: fn() -> Result<()>) -> Scenario {
    let trial = timed(name, move || {
        if let Some(shared) = SHARED.get() {
            shared.lock().map_err(|_| Failed::from("an earlier scenario broke off"))?.take();
        }
        scenario().map_err(failed)
    });
    Scenario { trial, cold: true }
}

/// A trial that tells how long it took: the whole run has a limit, and somebody looks for what to shorten.
fn timed(name: &'static str, scenario: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let start = Instant::now();
        let outcome = scenario();
        eprint!("({} s) ", start.elapsed().as_secs());
        outcome
    })
}

/// The end of the process drops no static: the shared machine is ended by this.
pub fn finish() {
    if let Some(mut shared) = SHARED.get().and_then(|shared| shared.lock().ok()) {
        shared.take();
    }
}

fn failed(error: anyhow::Error) -> Failed {
    // The causes without a backtrace: what failed is a machine.
    Failed::from(format!("{error:#}"))
}
