//! A machine of one's own: namespaces in which the event loop is process 1.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use garboard_control::{Client, LogSource, MachineInfo};
use garboard_init::console::Console;
use garboard_init::pid1::{self, Settings};
use garboard_init::shutdown;
use garboard_supervisor::spec::{ServiceName, ServiceSpec};
use garboard_supervisor::status::{PublicState, ServiceStatus};
use garboard_sys::mount::{Mount, MountFlags};
use tokio::runtime::Runtime;

/// Longest wait for anything; many times what it takes.
const LIMIT: Duration = Duration::from_secs(30);

/// The machine, from outside.
pub struct World {
    directory: tempfile::TempDir,
    process: Child,
    runtime: Runtime,
    client: Client,
}

/// The machine, from inside: runs as process 1 of its namespace.
pub fn pid1(directory: &str) {
    // Files of services are rendered below /run/garboard, and nothing of the host's is to be touched.
    let flags = MountFlags::empty();
    let run = Mount { source: "tmpfs", target: "/run", fs_type: "tmpfs", flags, data: "mode=0755" };
    run.apply_over().unwrap();
    let settings = Settings {
        runtime: PathBuf::from(directory),
        executor: PathBuf::from(env!("CARGO_BIN_EXE_garboard-init")),
        tree: None,
        builtin: Vec::new(),
        inhibit_group: 0,
        machine: MachineInfo { version: "test".to_owned(), ..MachineInfo::default() },
        lacking: None,
        console: Console::default(),
        reached: |_, _| {},
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kind = runtime.block_on(pid1::run(settings, |_, _| {})).unwrap();
    drop(runtime);
    shutdown::kill_everything(None);
    shutdown::power(kind);
}

impl World {
    /// Starts a machine without services.
    pub fn start() -> Result<Self, Box<dyn Error>> {
        // Not below /tmp, of which services may have one of their own.
        let directory = tempfile::tempdir_in("/var/tmp")?;
        // Services of other users must reach the sockets in it.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let process = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "--"])
            .arg(std::env::current_exe()?)
            .arg("--as-pid1")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = directory.path().join("control.sock");
        let client = {
            let _guard = runtime.enter();
            Client::at(&socket)?
        };
        let world = Self { directory, process, runtime, client };
        world.until("the control socket", || socket.exists());
        Ok(world)
    }

    /// A place for files that both sides see.
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A service that does what the words say, unconfined but for the usual.
    pub fn service(&self, name: &str, words: &[&str]) -> ServiceSpec {
        let program = std::env::current_exe().unwrap().display().to_string();
        let argv: Vec<&str> = [program.as_str(), "--as-service"].into_iter().chain(words.iter().copied()).collect();
        serde_json::from_value(serde_json::json!({
            "name": name,
            "argv": argv,
            "env": { "PATH": "/usr/bin:/bin" },
            "cgroup": { "slice": "system" },
            // More than an unprivileged test may have is no concern of these tests.
            "rlimitNofile": 1024,
            "isolation": { "privateMounts": false, "seccomp": "unconfined" },
            "restart": { "initialMs": 20, "maxMs": 200 },
            "stop": { "graceMs": 500 },
            "startTimeoutMs": 20_000,
        }))
        .unwrap()
    }

    pub fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, future).await }).expect("no answer in time")
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn set(&self, specs: &[ServiceSpec]) {
        self.block(self.client.set_services(specs)).unwrap();
    }

    pub fn status(&self, name: &str) -> ServiceStatus {
        let statuses = self.block(self.client.list_services()).unwrap();
        statuses.into_iter().find(|status| status.name.as_str() == name).unwrap()
    }

    /// Waits until the service's status is as wanted, and returns it.
    pub fn wait_for(&self, name: &str, wanted: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
        let name = ServiceName::try_from(name).unwrap();
        let found = self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, async {
                let mut stream = self.client.watch_services().await.unwrap();
                while let Some(statuses) = stream.next().await {
                    let status = statuses.unwrap().into_iter().find(|status| status.name == name);
                    if let Some(status) = status.filter(|status| wanted(status)) {
                        return status;
                    }
                }
                panic!("the stream has ended");
            })
            .await
        });
        found.unwrap_or_else(|_| panic!("{name} did not come to it: {:?}", self.status(name.as_str())))
    }

    pub fn wait_ready(&self, name: &str) -> ServiceStatus {
        self.wait_for(name, |status| status.ready)
    }

    pub fn wait_back_off(&self, name: &str) -> (ServiceStatus, String) {
        let status = self.wait_for(name, |status| matches!(status.state, PublicState::BackOff { .. }));
        let reason = match &status.state {
            PublicState::BackOff { reason, .. } => reason.clone(),
            _ => String::new(),
        };
        (status, reason)
    }

    /// All output of a service so far.
    pub fn output(&self, name: &str) -> Vec<String> {
        let source = LogSource::Service(ServiceName::try_from(name).unwrap());
        self.block(async {
            let lines = self.client.logs(&source, 1000, false).await.unwrap();
            lines.map(|line| line.unwrap().text).collect().await
        })
    }

    /// Runs a service once and returns its output.
    pub fn output_of(&self, spec: ServiceSpec) -> Vec<String> {
        let name = spec.name.to_string();
        self.set(&[ServiceSpec { oneshot: true, ..spec }]);
        self.wait_ready(&name);
        self.output(&name)
    }

    pub fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            self.block(async { tokio::time::sleep(Duration::from_millis(5)).await });
        }
    }

    /// The machine's processes as the host sees them: command line and state letter of each.
    pub fn processes(&self) -> Vec<(String, char)> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = self.pid1().and_then(|pid| namespace(&pid.to_string()));
        assert!(own.is_some());
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && namespace(pid) == own)
            .filter_map(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let state = stat.rsplit_once(')')?.1.trim().chars().next()?;
                let line = std::fs::read_to_string(Path::new("/proc").join(pid).join("cmdline")).ok()?;
                Some((line.replace('\0', " "), state))
            })
            .collect()
    }

    /// How the machine ended.
    pub fn wait_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the machine does not end");
            // Not just asleep: what was dropped must reach the other side.
            self.block(async { tokio::time::sleep(Duration::from_millis(5)).await });
        }
    }

    /// Process 1 of the namespace, by its number outside.
    fn pid1(&self) -> Option<nix::unistd::Pid> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.process.id())).ok()?;
        children.trim().parse().ok().map(nix::unistd::Pid::from_raw)
    }

    pub fn signal_pid1(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid1().unwrap(), signal).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // With the namespace's process 1 goes everything inside.
        if let Some(pid) = self.pid1() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
