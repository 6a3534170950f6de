//! The event loop: one task that owns all state, handles one event at a time and never waits inside of a handler.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use garboard_control::server::{Access, Refusal, Request, Server, listen};
use garboard_control::{INHIBIT_SOCKET, MachineInfo, MachinePhase, ProbeKind, ShutdownKind, Upkeep};
use garboard_supervisor::Supervisor;
use garboard_supervisor::spec::{ServiceName, ServiceSpec};
use garboard_supervisor::state::{self, Moment, ProcessEvent};
use garboard_supervisor::status::ServiceStatus;
use garboard_supervisor::supervisor::Actions;
use garboard_sys::clock::boot_time;
use garboard_sys::process::Signals;
use garboard_sys::watchdog::Watchdog;
use nix::libc::{SIGCHLD, SIGINT, SIGPWR, SIGTERM};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::sync::watch::Sender as Watch;
use tracing::{error, info, warn};

use crate::cgroups::Tree;
use crate::console::Console;
use crate::ending::{Inhibitor, Phase};
use crate::kmsg::chain;
use crate::logfile::Limits;
use crate::logs::Logs;
use crate::notify::{Message, NotifySocket};
use crate::runner::{Environment, News, Runner};
use crate::watched::{Watched, watch};
use crate::{requests, watchdog};

/// News that may wait: a few for each of the machine's services.
const NEWS: usize = 128;

/// Calls that may wait; a caller beyond these waits itself.
const REQUESTS: usize = 16;

/// Background news that may wait.
const BACKGROUND: usize = 16;

/// Longest sleep of the loop: the hardware watchdog is fed at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the loop is given.
#[derive(Debug)]
pub struct Settings {
    /// Where sockets lie, `/run/garboard`.
    pub runtime: PathBuf,
    /// This program.
    pub executor: PathBuf,
    /// The cgroup tree; none on a kernel without version 2.
    pub tree: Option<Tree>,
    /// The services that no set can touch.
    pub builtin: Vec<ServiceSpec>,
    /// The group that may use the inhibit socket.
    pub inhibit_group: u32,
    /// What is known of the machine.
    pub machine: MachineInfo,
    /// What the machine still lacks before declared services start.
    pub lacking: Option<String>,
    /// The consoles.
    pub console: Console,
    /// Called when a service has become ready, with its name.
    pub reached: fn(&mut Pid1, &str),
}

/// Something that another thread or task has found out.
pub enum Background {
    /// The machine ends because of a key, a button or a signal.
    Shutdown(ShutdownKind, String),
    /// An inhibitor was let go.
    Released(u64),
}

/// Reaches the loop from other threads and tasks.
pub type Reporter = mpsc::Sender<Background>;

enum Event {
    Signal(i32),
    News(News),
    Request(Request),
    Message(Message),
    Background(Background),
    Tick,
}

/// All state of PID 1.
pub struct Pid1 {
    pub(crate) supervisor: Supervisor,
    pub(crate) runner: Runner,
    pub(crate) logs: Logs,
    pub(crate) console: Console,
    pub(crate) machine: MachineInfo,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) upkeep: Upkeep,
    pub(crate) phase: Phase,
    pub(crate) inhibitors: BTreeMap<u64, Inhibitor>,
    pub(crate) next_inhibitor: u64,
    pub(crate) statuses: Watch<Vec<ServiceStatus>>,
    pub(crate) phases: Watch<MachinePhase>,
    pub(crate) reporter: Reporter,
    pub(crate) reached: fn(&mut Pid1, &str),
}

/// The loop's ears.
struct Inputs {
    signals: AsyncFd<Watched<Signals>>,
    news: mpsc::Receiver<News>,
    requests: mpsc::Receiver<Request>,
    background: mpsc::Receiver<Background>,
    notify: Option<NotifySocket>,
}

/// The loop could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Pid1Error {
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[from] garboard_sys::process::ProcessError),
    /// The runtime does not watch descriptors.
    #[error("cannot wait for signals")]
    Wait(#[from] std::io::Error),
}

/// Runs the machine until it is to end and everything has been stopped; says how it is to end. `started` is called when the loop is about
/// to begin, with a way to reach it.
///
/// # Errors
/// [`Pid1Error`]: without signals there is no supervision.
pub async fn run(settings: Settings, started: impl FnOnce(&Reporter, &Logs)) -> Result<ShutdownKind, Pid1Error> {
    let signals = watch(Signals::block(&[SIGCHLD, SIGTERM, SIGINT, SIGPWR])?)?;
    let Settings { runtime, executor, tree, builtin, inhibit_group, machine, lacking, console, reached } = settings;
    let (news_sender, news) = mpsc::channel(NEWS);
    let (request_sender, requests) = mpsc::channel(REQUESTS);
    let (reporter, background) = mpsc::channel(BACKGROUND);
    let notify_path = runtime.join("notify.sock");
    let notify = NotifySocket::bind(&notify_path)
        .inspect_err(|error| error!(path = %notify_path.display(), %error, "services cannot send messages"))
        .ok();
    let (statuses, statuses_receiver) = tokio::sync::watch::channel(Vec::new());
    let (phases, phases_receiver) = tokio::sync::watch::channel(MachinePhase::Running);
    let server =
        |access| Server::new(access, request_sender.clone(), statuses_receiver.clone(), phases_receiver.clone());
    // In this order: whoever reaches the second finds the first.
    let inhibit_name = Path::new(INHIBIT_SOCKET).file_name().unwrap_or_default();
    serve(server(Access::Inhibit), &runtime.join(inhibit_name), 0o660, inhibit_group);
    serve(server(Access::Full), &runtime.join("control.sock"), 0o600, 0);
    let logs = Logs::default();
    let environment = Environment { executor, tree, notify_socket: notify_path };
    let mut pid1 = Pid1 {
        supervisor: Supervisor::new(builtin, boot_time()),
        runner: Runner::new(environment, logs.clone(), news_sender),
        logs,
        console,
        machine,
        // Its driver may be a module.
        watchdog: None,
        upkeep: Upkeep::default(),
        phase: Phase::Running,
        inhibitors: BTreeMap::new(),
        next_inhibitor: 0,
        statuses,
        phases,
        reporter,
        reached,
    };
    started(&pid1.reporter, &pid1.logs);
    pid1.lack(lacking);
    let mut inputs = Inputs { signals, news, requests, background, notify };
    loop {
        let event = inputs.next(pid1.wait()).await;
        // A fault in one handler must not be the end of all supervision; state is only ever replaced whole.
        if catch_unwind(AssertUnwindSafe(|| pid1.handle(event))).is_err() {
            error!("a handler of PID 1 failed; going on");
        }
        if let Some(kind) = pid1.ended() {
            return Ok(kind);
        }
    }
}

fn serve(server: Server, path: &Path, mode: u32, group: u32) {
    match listen(path, mode, group) {
        Ok(listener) => drop(tokio::spawn(server.run(listener))),
        Err(error) => error!(error = %chain(&error), "a socket of PID 1 is not there"),
    }
}

impl Inputs {
    /// The next event, a tick after `wait` at the latest. Every arm is cancel-safe: nothing is taken before it is returned.
    async fn next(&mut self, wait: Duration) -> Event {
        let notify = async {
            match &self.notify {
                Some(socket) => socket.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // In this order, so that a flood of one kind cannot hold up what matters more.
            biased;
            signal = next_signal(&self.signals) => Event::Signal(signal),
            Some(background) = self.background.recv() => Event::Background(background),
            Some(news) = self.news.recv() => Event::News(news),
            () = tokio::time::sleep(wait) => Event::Tick,
            message = notify => match message {
                Ok(message) => Event::Message(message),
                Err(_) => Event::Tick,
            },
            Some(request) = self.requests.recv() => Event::Request(request),
        }
    }
}

async fn next_signal(signals: &AsyncFd<Watched<Signals>>) -> i32 {
    loop {
        let Ok(mut ready) = signals.readable().await else { return SIGCHLD };
        match signals.get_ref().0.next_signal() {
            Ok(Some(signal)) => return signal,
            Ok(None) => ready.clear_ready(),
            // Looking for ended children can do no harm.
            Err(_) => return SIGCHLD,
        }
    }
}

/// Now. The clock's last digits are as good as chance for spreading waits.
pub(crate) fn moment() -> Moment {
    let now = boot_time();
    Moment { now, jitter: now.subsec_micros() % 1001 }
}

impl Pid1 {
    fn wait(&self) -> Duration {
        let now = boot_time();
        let next = self.supervisor.deadline().into_iter().chain(self.phase.deadline()).min();
        next.map_or(HEARTBEAT, |at| at.saturating_sub(now).min(HEARTBEAT))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal(SIGCHLD) => self.runner.reap(),
            Event::Signal(SIGINT) => self.shut_down(ShutdownKind::Reboot, "ctrl-alt-del"),
            Event::Signal(number) => self.shut_down(ShutdownKind::PowerOff, &format!("signal {number}")),
            Event::News(News { name, run, event }) => {
                let actions = self.supervisor.process(&name, run, event, moment());
                self.act(actions);
            }
            Event::Message(Message { pid, notifications }) => {
                if let Some((name, run)) = self.runner.owner(pid) {
                    for notification in notifications {
                        let event = ProcessEvent::Notified(notification);
                        let actions = self.supervisor.process(&name, run, event, moment());
                        self.act(actions);
                    }
                }
            }
            Event::Request(request) => requests::answer(self, request),
            Event::Background(Background::Shutdown(kind, reason)) => self.shut_down(kind, &reason),
            Event::Background(Background::Released(number)) => {
                self.inhibitors.remove(&number);
            }
            Event::Tick => {}
        }
        self.tick();
    }

    pub(crate) fn tick(&mut self) {
        let actions = self.supervisor.tick(moment());
        self.act(actions);
        if let Some(watchdog) = &self.watchdog
            && let Err(error) = watchdog.pat()
        {
            warn!(error = %chain(&error), "the hardware watchdog does not listen");
            self.watchdog = None;
        }
        self.tick_ending();
        self.publish();
    }

    /// Carries out actions, and those that follow from them.
    pub(crate) fn act(&mut self, actions: Actions) {
        let mut queue = std::collections::VecDeque::from(actions);
        while let Some((name, action)) = queue.pop_front() {
            let Some(spec) = self.supervisor.spec(&name) else { continue };
            if let Some(event) = self.runner.act(&name, spec, &action)
                && let Some(run) = self.supervisor.run(&name)
            {
                queue.extend(self.supervisor.process(&name, run, event, moment()));
            }
        }
    }

    /// Says what the machine still lacks before declared services start.
    pub fn lack(&mut self, lacking: Option<String>) {
        let actions = self.supervisor.set_lacking(lacking, moment());
        self.act(actions);
        self.publish();
    }

    /// Starts the hardware watchdog, if there is one and it is not off; called when its driver may have been loaded.
    pub fn watch_over(&mut self) {
        if self.watchdog.is_none() {
            let problem = self.keep_watchdog();
            self.machine.problems.extend(problem);
        }
    }

    /// Sets how the machine is watched over and how much it keeps of logs. Returns what of it could not be done, in words.
    pub(crate) fn configure(&mut self, upkeep: Upkeep) -> Vec<String> {
        if upkeep == self.upkeep {
            return Vec::new();
        }
        info!(?upkeep, "configured");
        let watched_as_before = upkeep.watchdog_seconds == self.upkeep.watchdog_seconds;
        self.upkeep = upkeep;
        self.logs.limit_files(Limits::from(&upkeep));
        if watched_as_before { Vec::new() } else { self.keep_watchdog().into_iter().collect() }
    }

    /// Makes the hardware watchdog what it should be. Returns what is wrong, in words, if anything is.
    fn keep_watchdog(&mut self) -> Option<String> {
        let timeout = self.upkeep.watchdog_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        match (self.watchdog.take(), timeout) {
            (None, None) => None,
            (None, Some(timeout)) => {
                let (watchdog, problem) = watchdog::open(timeout);
                self.watchdog = watchdog;
                problem
            }
            (Some(running), Some(timeout)) => {
                let problem = watchdog::set(&running, timeout);
                self.watchdog = Some(running);
                problem
            }
            (Some(running), None) => match watchdog::stop(running) {
                Ok(()) => None,
                Err((running, problem)) => {
                    self.watchdog = Some(running);
                    Some(problem)
                }
            },
        }
    }

    /// How much is kept of lines in files.
    pub fn log_limits(&self) -> Limits {
        Limits::from(&self.upkeep)
    }

    /// Where lines go.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What is known of the machine, to be corrected.
    pub fn machine_mut(&mut self) -> &mut MachineInfo {
        &mut self.machine
    }

    /// Writes a line on the consoles.
    pub fn console_line(&mut self, text: &str) {
        self.console.line(text);
    }

    pub(crate) fn probe_report(
        &mut self,
        name: &ServiceName,
        kind: ProbeKind,
        ok: bool,
        message: String,
    ) -> Result<(), Refusal> {
        let run = self.supervisor.run(name).ok_or_else(|| Refusal::NoSuchService(name.clone()))?;
        let kind = match kind {
            ProbeKind::Readiness => state::ProbeKind::Readiness,
            ProbeKind::Liveness => state::ProbeKind::Liveness,
        };
        let actions = self.supervisor.process(name, run, ProcessEvent::Probed { kind, ok, message }, moment());
        self.act(actions);
        Ok(())
    }
}
