//! The clock's controller against chronyd, each test in a network namespace of its own. The clock that it leads is the test's: that of
//! the host is nobody's to change here.
//!
//! Needs root, `ip` (iproute2) and `chronyd` (chrony).

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use garboard_api::machine::MachineTime;
use garboard_controllers::network::NodeAddresses;
use garboard_controllers::time::{Clock, TimeView, Timekeeper, Watched};
use garboard_plan::time::{self as plan, Loss, State};
use garboard_sys::clock::ClockError;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

/// What was done to the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    Slewed(i64),
    Stepped(i64),
}

/// A clock that is off by some microseconds from the host's, and what was done to it.
#[derive(Clone, Default)]
struct Off(Arc<Mutex<(i64, Vec<Done>)>>);

impl Off {
    fn by(offset_us: i64) -> Self {
        Self(Arc::new(Mutex::new((offset_us, Vec::new()))))
    }

    fn done(&self) -> Vec<Done> {
        self.0.lock().unwrap().1.clone()
    }

    fn move_by(&self, offset_us: i64, done: Done) {
        let mut state = self.0.lock().unwrap();
        state.0 += offset_us;
        state.1.push(done);
    }
}

impl Clock for Off {
    fn now(&self) -> SystemTime {
        plan::moved(SystemTime::now(), self.0.lock().unwrap().0).unwrap()
    }

    fn is_synchronized(&self) -> bool {
        !self.done().is_empty()
    }

    fn slew(&self, offset_us: i64, _: Duration) -> Result<(), ClockError> {
        self.move_by(offset_us, Done::Slewed(offset_us));
        Ok(())
    }

    fn step(&self, offset_us: i64) -> Result<(), ClockError> {
        self.move_by(offset_us, Done::Stepped(offset_us));
        Ok(())
    }
}

/// A time server, chronyd on an address of loopback. It serves the time of the host and leaves its clock alone.
struct Server(Child);

impl Server {
    fn start(directory: &Path, address: &str, stratum: u8) -> Self {
        let config = directory.join(format!("{address}.conf"));
        let pid = directory.join(format!("{address}.pid"));
        let lines =
            format!("bindaddress {address}\nallow\nlocal stratum {stratum}\ncmdport 0\npidfile {}\n", pid.display());
        fs::write(&config, lines).unwrap();
        let server = Command::new("chronyd")
            .args(["-d", "-x", "-u", "root", "-f"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

struct Scene {
    directory: tempfile::TempDir,
    config: watch::Sender<Option<MachineTime>>,
    view: watch::Receiver<TimeView>,
    clock: Off,
    _network: watch::Sender<NodeAddresses>,
}

impl Scene {
    /// Runs a test on a thread in a network namespace of its own, with a clock that is off.
    fn run<F: Future<Output = ()>>(clock: Off, test: impl FnOnce(Scene) -> F + Send + 'static) {
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "dev", "lo", "up"]).status().unwrap().success());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (config, config_seen) = watch::channel(None);
                let addresses = vec!["127.0.0.1".parse().unwrap()];
                let (network, network_seen) = watch::channel(NodeAddresses { addresses, ..NodeAddresses::default() });
                let services = watch::channel(Arc::default()).1;
                let watched = Watched { config: config_seen, network: network_seen, services };
                let (notables, _handed) = mpsc::channel(4);
                let (keeper, view) = Timekeeper::new(watched, clock.clone(), SystemTime::UNIX_EPOCH, notables);
                let stop = CancellationToken::new();
                let task = tokio::spawn(keeper.run(stop.clone()));
                let directory = tempfile::tempdir().unwrap();
                test(Scene { directory, config, view, clock, _network: network }).await;
                stop.cancel();
                task.await.unwrap();
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn declare(&self, servers: &[&str]) {
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        self.config.send_replace(Some(MachineTime { servers }));
    }

    async fn wait(&self, what: &str, found: impl Fn(&State) -> bool) -> State {
        let mut view = self.view.clone();
        let found = tokio::time::timeout(LIMIT, view.wait_for(|view| found(&view.state))).await;
        match found {
            Ok(view) => view.unwrap().state.clone(),
            Err(_) => panic!("no {what}: {:?}", self.view.borrow()),
        }
    }
}

fn follows(server: &'static str) -> impl Fn(&State) -> bool {
    move |state| matches!(state, State::Following(status) if status.server == server)
}

#[test]
fn a_clock_that_is_off_is_set_at_the_start_and_led_from_then_on() {
    Scene::run(Off::by(-5_000_000), |scene| async move {
        let _server = Server::start(scene.directory.path(), "127.0.0.1", 3);
        scene.declare(&["127.0.0.1"]);
        let State::Following(status) = scene.wait("server to follow", follows("127.0.0.1")).await else {
            unreachable!("it follows")
        };
        assert_eq!((status.stratum, status.offset_milliseconds), (3, 0));
        let done = scene.clock.done();
        let [Done::Stepped(by)] = done[..] else { panic!("{done:?}") };
        assert!(by.abs_diff(5_000_000) < 100_000, "{by}");

        // The same server under its name is another: the clock is right by now.
        scene.declare(&["localhost"]);
        scene.wait("server to follow", follows("localhost")).await;
        let done = scene.clock.done();
        assert!(matches!(done[..], [Done::Stepped(_), Done::Slewed(by)] if by.abs() < 100_000), "{done:?}");
    });
}

#[test]
fn a_server_that_comes_late_is_found_and_silence_is_told() {
    Scene::run(Off::by(200_000), |scene| async move {
        scene.declare(&["127.0.0.1"]);
        let lost = scene.wait("loss", |state| matches!(state, State::Lost(_))).await;
        assert!(matches!(lost, State::Lost(Loss::NoAnswer(_))), "{lost:?}");
        assert_eq!(scene.clock.done(), []);
        let _server = Server::start(scene.directory.path(), "127.0.0.1", 2);
        scene.wait("server to follow", follows("127.0.0.1")).await;
        let done = scene.clock.done();
        assert!(matches!(done[..], [Done::Slewed(by)] if by.abs_diff(-200_000) < 100_000), "{done:?}");
    });
}
