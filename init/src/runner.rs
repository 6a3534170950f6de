//! Carries out what the supervisor decides: processes, signals, probes. What comes of it goes back as [`News`].

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use garboard_supervisor::exit::Exit;
use garboard_supervisor::spec::{Probe, ProbeAction, ServiceName, ServiceSpec};
use garboard_supervisor::state::{Action, ProbeKind, ProcessEvent, Run};
use garboard_sys::cgroup::Cgroup;
use garboard_sys::process::{self, Process, Spawned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::cgroups::Tree;
use crate::kmsg::chain;
use crate::logs::Logs;
use crate::probe;
use crate::request::{LaunchFailure, LaunchRequest, Task};

/// Longest answer of an executor, bytes.
const MAX_FAILURE_LEN: u64 = 16 * 1024;

/// Time between two looks at a cgroup that is being emptied.
const EMPTYING_PERIOD: Duration = Duration::from_millis(5);

/// Time after which a cgroup that does not become empty is reported, and killed again.
const EMPTYING_PATIENCE: Duration = Duration::from_secs(5);

/// News for the supervisor, about one process of one service.
#[derive(Debug)]
pub struct News {
    /// The service.
    pub name: ServiceName,
    /// Which of its processes.
    pub run: Run,
    /// What happened.
    pub event: ProcessEvent,
}

/// What the runner needs to know of the machine.
#[derive(Debug)]
pub struct Environment {
    /// The program whose `launch` subcommand is the executor: this very program.
    pub executor: PathBuf,
    /// The cgroup tree; none on a kernel without version 2.
    pub tree: Option<Tree>,
    /// Where services send messages.
    pub notify_socket: PathBuf,
}

/// Which part a process has.
#[derive(Debug)]
enum Role {
    Main,
    Probe(ProbeKind),
    /// Writes files, after which the main process gets the signal.
    Files(Option<i32>),
}

#[derive(Debug)]
struct Child {
    name: ServiceName,
    run: Run,
    role: Role,
    process: Process,
    cgroup: Option<Cgroup>,
    /// Talks to the executor; must have had its say before the end of the process is news.
    talk: JoinHandle<()>,
}

/// All processes that PID 1 has started and not yet reaped.
#[derive(Debug)]
pub struct Runner {
    environment: Environment,
    logs: Logs,
    news: mpsc::Sender<News>,
    children: HashMap<i32, Child>,
}

impl Runner {
    /// A runner without processes. `news` is emptied by the task that also calls this; it should hold a few items per service.
    pub fn new(environment: Environment, logs: Logs, news: mpsc::Sender<News>) -> Self {
        Self { environment, logs, news, children: HashMap::new() }
    }

    /// Carries out an action. A launch is answered at once, everything else through the news.
    pub fn act(&mut self, name: &ServiceName, spec: &ServiceSpec, action: &Action) -> Option<ProcessEvent> {
        match *action {
            Action::Launch { run } => {
                let launched = self.start(name, spec, run, Role::Main, Task::Run);
                return Some(match launched {
                    Ok(pid) => ProcessEvent::Launched { pid },
                    Err(reason) => ProcessEvent::LaunchFailed { reason },
                });
            }
            Action::Signal { run, signal } => {
                if let Some(child) = self.main(name, run)
                    && let Err(error) = child.process.signal(signal)
                {
                    warn!(service = %name, error = %chain(&error), "cannot signal a service");
                }
            }
            Action::Kill { run } => {
                if let Some(child) = self.main(name, run) {
                    kill(child);
                }
            }
            Action::Probe { run, kind } => self.probe(name, spec, run, kind),
            Action::Refresh { run, signal } => {
                if let Err(reason) = self.start(name, spec, run, Role::Files(signal), Task::WriteFiles) {
                    warn!(service = %name, reason, "cannot write the files of a service");
                }
            }
        }
        None
    }

    /// The service that a process belongs to: its main process, or any other in its cgroup.
    pub fn owner(&self, pid: i32) -> Option<(ServiceName, Run)> {
        if let Some(child) = self.children.get(&pid) {
            return matches!(child.role, Role::Main).then(|| (child.name.clone(), child.run));
        }
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let name = text.lines().find_map(|line| Tree::owner(line.strip_prefix("0::")?))?;
        let child = self.children.values().find(|child| child.name == name && matches!(child.role, Role::Main))?;
        Some((child.name.clone(), child.run))
    }

    /// Memory in bytes and processor time in microseconds of a service's cgroup.
    pub fn usage(&self, spec: &ServiceSpec) -> (Option<u64>, Option<u64>) {
        let Some(tree) = &self.environment.tree else { return (None, None) };
        let group = tree.service(spec);
        (group.memory_bytes().ok(), group.cpu_usec().ok())
    }

    /// The cgroup tree.
    pub fn tree(&self) -> Option<&Tree> {
        self.environment.tree.as_ref()
    }

    /// Reaps everything that has ended, orphans of others included.
    pub fn reap(&mut self) {
        let mut ended = Vec::new();
        if let Err(error) = process::reap_all(|pid, exit| ended.push((pid.as_raw_nonzero().get(), exit))) {
            warn!(error = %chain(&error), "cannot reap");
        }
        for (pid, exit) in ended {
            // Orphans have no entry.
            if let Some(child) = self.children.remove(&pid) {
                self.ended(child, understood(exit));
            }
        }
    }

    fn main(&self, name: &ServiceName, run: Run) -> Option<&Child> {
        self.children.values().find(|child| child.name == *name && child.run == run && matches!(child.role, Role::Main))
    }

    fn start(
        &mut self,
        name: &ServiceName,
        spec: &ServiceSpec,
        run: Run,
        role: Role,
        task: Task,
    ) -> Result<i32, String> {
        let cgroup = match self.environment.tree.as_ref().map(|tree| tree.prepare(spec)) {
            Some(Ok(cgroup)) => Some(cgroup),
            Some(Err(error)) => return Err(chain(&error)),
            None => None,
        };
        let request = LaunchRequest {
            spec: spec.clone(),
            task,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            notify_socket: self.environment.notify_socket.clone(),
        };
        let order = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        drop(request);
        let (socket, output, process) = self.spawn().map_err(|error| error.to_string())?;
        let pid = process.pid().as_raw_nonzero().get();
        match pipe::Receiver::from_owned_fd(OwnedFd::from(output)) {
            Ok(output) => drop(tokio::spawn(self.logs.clone().collect(name.clone(), output))),
            Err(error) => warn!(service = %name, %error, "the output of a service is lost"),
        }
        let main = matches!(role, Role::Main);
        let talk = tokio::spawn(talk(socket, order, name.clone(), run, main, self.news.clone()));
        debug!(service = %name, pid, "process started");
        self.children.insert(pid, Child { name: name.clone(), run, role, process, cgroup, talk });
        Ok(pid)
    }

    fn spawn(&self) -> io::Result<(StdUnixStream, PipeReader, Process)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (output, input) = io::pipe()?;
        let Spawned { process, stdin: _, stdout: _, stderr: _ } = process::spawn(
            Command::new(&self.environment.executor)
                .arg("launch")
                .env_clear()
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::from(input.try_clone()?))
                .stderr(Stdio::from(input)),
        )
        .map_err(|error| io::Error::other(chain(&error)))?;
        Ok((ours, output, process))
    }

    fn probe(&mut self, name: &ServiceName, spec: &ServiceSpec, run: Run, kind: ProbeKind) {
        let probe = match kind {
            ProbeKind::Readiness => &spec.readiness,
            ProbeKind::Liveness => &spec.liveness,
        };
        let Some(Probe { action, timeout_ms, .. }) = probe else { return };
        let timeout = Duration::from_millis(*timeout_ms);
        if let ProbeAction::Exec { argv } = action {
            let task = Task::Probe { argv: argv.clone() };
            match self.start(name, spec, run, Role::Probe(kind), task) {
                Ok(pid) => self.limit(pid, timeout),
                Err(reason) => self.answer(name.clone(), run, kind, Err(reason)),
            }
            return;
        }
        let (action, name, news) = (action.clone(), name.clone(), self.news.clone());
        tokio::spawn(async move {
            let answer = probe::ask(&action, timeout).await;
            let event = probed(kind, answer);
            // Nobody listens any more only at the machine's end.
            let _ = news.send(News { name, run, event }).await;
        });
    }

    /// Kills a probe's process that takes too long; its end is then the answer.
    fn limit(&self, pid: i32, timeout: Duration) {
        let Some(child) = self.children.get(&pid) else { return };
        let Ok(process) = Process::open(child.process.pid()) else { return };
        tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            // Through its descriptor: one that has ended long since is not mistaken for another.
            let _ = process.kill();
        });
    }

    fn answer(&self, name: ServiceName, run: Run, kind: ProbeKind, answer: Result<(), String>) {
        let news = self.news.clone();
        tokio::spawn(async move {
            let _ = news.send(News { name, run, event: probed(kind, answer) }).await;
        });
    }

    fn ended(&mut self, child: Child, exit: Exit) {
        let Child { name, run, role, process, cgroup, talk } = child;
        match role {
            Role::Main => {
                let news = self.news.clone();
                tokio::spawn(async move {
                    // A task that ended badly has nothing more to say either.
                    let _ = talk.await;
                    empty(&name, process.pid().as_raw_nonzero().get(), cgroup.as_ref()).await;
                    let _ = news.send(News { name, run, event: ProcessEvent::Exited(exit) }).await;
                });
            }
            Role::Probe(kind) => {
                let answer = if exit.success() { Ok(()) } else { Err(format!("the probe {exit}")) };
                self.answer(name, run, kind, answer);
            }
            Role::Files(signal) => {
                if !exit.success() {
                    warn!(service = %name, %exit, "the files of a service were not written");
                } else if let Some(signal) = signal
                    && let Some(main) = self.main(&name, run)
                    && let Err(error) = main.process.signal(signal)
                {
                    warn!(service = %name, error = %chain(&error), "cannot signal a service");
                }
            }
        }
    }
}

/// Gives the executor its order and takes its answer: silence means that the program was executed.
async fn talk(
    socket: StdUnixStream,
    order: Vec<u8>,
    name: ServiceName,
    run: Run,
    main: bool,
    news: mpsc::Sender<News>,
) {
    let exchange = async {
        let mut socket = UnixStream::from_std(socket)?;
        socket.write_all(&order).await?;
        drop(order);
        socket.shutdown().await?;
        let mut answer = Vec::new();
        socket.take(MAX_FAILURE_LEN).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let reason = match exchange.await {
        Ok(answer) if answer.is_empty() => None,
        Ok(answer) => match serde_json::from_slice::<LaunchFailure>(&answer) {
            Ok(failure) => Some(failure.to_string()),
            Err(_) => Some("the executor's answer is not understood".to_owned()),
        },
        Err(error) => Some(format!("cannot talk to the executor: {error}")),
    };
    match reason {
        None if main => drop(news.send(News { name, run, event: ProcessEvent::Executed }).await),
        Some(reason) if main => drop(news.send(News { name, run, event: ProcessEvent::SetupFailed { reason } }).await),
        Some(reason) => warn!(service = %name, reason, "a helper of a service could not be started"),
        None => {}
    }
}

/// Kills what a service has left behind and waits until it is gone: the next process must not meet the last one's children.
async fn empty(name: &ServiceName, pid: i32, cgroup: Option<&Cgroup>) {
    let Some(cgroup) = cgroup else {
        // Without cgroups the session that the executor began is the best to be had.
        kill_session(pid);
        return;
    };
    let mut waited = Duration::ZERO;
    loop {
        match cgroup.populated() {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) => {
                warn!(service = %name, error = %chain(&error), "cannot look into a cgroup");
                break;
            }
        }
        if waited.is_zero() || waited >= EMPTYING_PATIENCE {
            if !waited.is_zero() {
                warn!(service = %name, "processes of a service survive being killed");
                waited = Duration::ZERO;
            }
            if let Err(error) = cgroup.kill() {
                warn!(service = %name, error = %chain(&error), "cannot kill a cgroup");
            }
        }
        tokio::time::sleep(EMPTYING_PERIOD).await;
        waited += EMPTYING_PERIOD;
    }
}

fn kill(child: &Child) {
    // Itself first: before it entered its cgroup it would be missed.
    if let Err(error) = child.process.kill() {
        warn!(service = %child.name, error = %chain(&error), "cannot kill a service");
    }
    match &child.cgroup {
        Some(cgroup) => {
            if let Err(error) = cgroup.kill() {
                warn!(service = %child.name, error = %chain(&error), "cannot kill a cgroup");
            }
        }
        None => kill_session(child.process.pid().as_raw_nonzero().get()),
    }
}

fn kill_session(pid: i32) {
    // No such group: nobody is left.
    let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

fn probed(kind: ProbeKind, answer: Result<(), String>) -> ProcessEvent {
    match answer {
        Ok(()) => ProcessEvent::Probed { kind, ok: true, message: String::new() },
        Err(message) => ProcessEvent::Probed { kind, ok: false, message },
    }
}

fn understood(exit: process::Exit) -> Exit {
    match exit {
        process::Exit::Code(code) => Exit::Code(code),
        process::Exit::Signal { number, core_dumped } => Exit::Signal { number, core_dumped },
    }
}
