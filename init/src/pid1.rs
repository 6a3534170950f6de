//! The event loop: one task that owns all state, handles one event at a time and never waits inside of a handler.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use garboard_control::server::{Access, Refusal, Request, Server, listen};
use garboard_control::{INHIBIT_SOCKET, MachineInfo, MachinePhase, ProbeKind, ShutdownKind};
use garboard_supervisor::Supervisor;
use garboard_supervisor::spec::{ServiceName, ServiceSpec};
use garboard_supervisor::state::{self, Moment, ProcessEvent};
use garboard_supervisor::status::{PublicState, ServiceStatus};
use garboard_supervisor::supervisor::Actions;
use garboard_sys::clock::boot_time;
use garboard_sys::process::Signals;
use nix::libc::{SIGCHLD, SIGINT, SIGPWR, SIGTERM};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch::Sender as Watch;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::cgroups::Tree;
use crate::console::Console;
use crate::kmsg::chain;
use crate::logs::Logs;
use crate::notify::{Message, NotifySocket};
use crate::requests;
use crate::runner::{Environment, News, Runner};
use crate::shutdown::{MAX_INHIBIT_DELAY, MAX_STOP_TIME};
use crate::watched::{Watched, watch};

/// News that may wait: a few for each of the machine's services.
const NEWS: usize = 128;

/// Calls that may wait; a caller beyond these waits itself.
const REQUESTS: usize = 16;

/// Background news that may wait.
const BACKGROUND: usize = 16;

/// Longest sleep of the loop: the hardware watchdog is fed at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lines of output that are reported with a failing service.
const LAST_LINES: usize = 8;

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
    /// The hardware watchdog, if there is one.
    pub watchdog: Option<garboard_sys::watchdog::Watchdog>,
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

#[derive(Debug)]
struct Inhibitor {
    who: String,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Preparing { kind: ShutdownKind, deadline: Duration },
    Stopping { kind: ShutdownKind, deadline: Duration },
}

/// All state of PID 1.
pub struct Pid1 {
    pub(crate) supervisor: Supervisor,
    pub(crate) runner: Runner,
    pub(crate) logs: Logs,
    pub(crate) console: Console,
    pub(crate) machine: MachineInfo,
    watchdog: Option<garboard_sys::watchdog::Watchdog>,
    phase: Phase,
    inhibitors: BTreeMap<u64, Inhibitor>,
    next_inhibitor: u64,
    statuses: Watch<Vec<ServiceStatus>>,
    phases: Watch<MachinePhase>,
    reporter: Reporter,
    reached: fn(&mut Pid1, &str),
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
    let Settings { runtime, executor, tree, builtin, inhibit_group, machine, lacking, console, watchdog, reached } =
        settings;
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
    serve(server(Access::Full), &runtime.join("control.sock"), 0o600, 0);
    let inhibit_name = Path::new(INHIBIT_SOCKET).file_name().unwrap_or_default();
    serve(server(Access::Inhibit), &runtime.join(inhibit_name), 0o660, inhibit_group);
    let logs = Logs::default();
    let environment = Environment { executor, tree, notify_socket: notify_path };
    let mut pid1 = Pid1 {
        supervisor: Supervisor::new(builtin, boot_time()),
        runner: Runner::new(environment, logs.clone(), news_sender),
        logs,
        console,
        machine,
        watchdog,
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
        let own = match self.phase {
            Phase::Running => None,
            Phase::Preparing { deadline, .. } | Phase::Stopping { deadline, .. } => Some(deadline),
        };
        let next = self.supervisor.deadline().into_iter().chain(own).min();
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

    fn tick(&mut self) {
        let actions = self.supervisor.tick(moment());
        self.act(actions);
        if let Some(watchdog) = &self.watchdog
            && let Err(error) = watchdog.pat()
        {
            warn!(error = %chain(&error), "the hardware watchdog does not listen");
            self.watchdog = None;
        }
        if let Phase::Preparing { kind, deadline } = self.phase {
            if self.inhibitors.is_empty() {
                self.stop(kind);
            } else if deadline <= boot_time() {
                for Inhibitor { who, why } in self.inhibitors.values() {
                    warn!(who, why, "no longer waiting before the shutdown");
                }
                self.stop(kind);
            }
        }
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

    /// Whether a hardware watchdog is fed.
    pub fn is_watched(&self) -> bool {
        self.watchdog.is_some()
    }

    /// From now on this hardware watchdog is fed.
    pub fn watch_over(&mut self, watchdog: Option<garboard_sys::watchdog::Watchdog>) {
        self.watchdog = watchdog;
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

    /// What is known of all services now.
    pub(crate) fn report(&self, with_usage: bool) -> Vec<ServiceStatus> {
        let mut statuses = self.supervisor.statuses();
        for status in &mut statuses {
            let failing = matches!(status.state, PublicState::BackOff { .. } | PublicState::Failed { .. });
            if failing || status.crash_looping {
                let lines = self.logs.tail(&status.name, LAST_LINES);
                status.last_lines = lines.into_iter().map(|line| line.text).collect();
            }
            if with_usage && let Some(spec) = self.supervisor.spec(&status.name) {
                (status.memory_bytes, status.cpu_usec) = self.runner.usage(spec);
            }
        }
        statuses
    }

    /// Tells watchers and the log what has changed.
    pub(crate) fn publish(&mut self) {
        let statuses = self.report(false);
        let mut reached = Vec::new();
        self.statuses.send_if_modified(|present| {
            if *present == statuses {
                return false;
            }
            log_changes(present, &statuses);
            let was_ready = |name: &ServiceName| present.iter().any(|status| status.name == *name && status.ready);
            let now_ready = statuses.iter().filter(|status| status.ready && !was_ready(&status.name));
            reached.extend(now_ready.map(|status| status.name.clone()));
            *present = statuses;
            true
        });
        for name in reached {
            (self.reached)(self, name.as_str());
        }
    }

    /// Begins the machine's end; a second order while inhibitors are waited for ends that wait.
    pub(crate) fn shut_down(&mut self, kind: ShutdownKind, reason: &str) {
        match self.phase {
            Phase::Running => {
                info!(?kind, reason, "shutting down");
                self.console.line(&format!("shutting down: {reason}"));
                let deadline = boot_time() + MAX_INHIBIT_DELAY;
                self.phase = Phase::Preparing { kind, deadline };
                let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                self.phases.send_replace(MachinePhase::PreparingShutdown { kind, deadline_ms });
                for Inhibitor { who, why } in self.inhibitors.values() {
                    info!(who, why, "waiting before the shutdown");
                    self.console.line(&format!("waiting for {who}: {why}"));
                }
                self.tick();
            }
            Phase::Preparing { kind, .. } => self.stop(kind),
            Phase::Stopping { .. } => {}
        }
    }

    fn stop(&mut self, kind: ShutdownKind) {
        self.console.line("stopping all services");
        self.phase = Phase::Stopping { kind, deadline: boot_time() + MAX_STOP_TIME };
        self.phases.send_replace(MachinePhase::Stopping { kind });
        let actions = self.supervisor.shut_down(moment());
        self.act(actions);
        self.publish();
    }

    /// How the machine is to end, once nothing is left to wait for.
    fn ended(&mut self) -> Option<ShutdownKind> {
        let Phase::Stopping { kind, deadline } = self.phase else { return None };
        let late = deadline <= boot_time();
        if late {
            for status in self.supervisor.statuses().iter().filter(|status| status.pid.is_some()) {
                warn!(service = %status.name, "a service has not ended in time");
            }
        }
        if !late && !self.supervisor.is_down() {
            return None;
        }
        // The last steps wait inside of the kernel; if they hang, the machine restarts all the same.
        if let Some(watchdog) = &self.watchdog
            && let Err(error) = watchdog.set_timeout(crate::watchdog::LAST_TIMEOUT)
        {
            warn!(error = %chain(&error), "the hardware watchdog may cut the shutdown short");
        }
        if let Some(thread) = self.logs.take_files() {
            // Its queue is bounded and the disk may be broken: not waited for longer than a moment.
            crate::logfile::wait(thread, Duration::from_secs(2));
        }
        Some(kind)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(crate) fn inhibit(
        &mut self,
        who: String,
        why: String,
        held: oneshot::Receiver<()>,
    ) -> Result<Duration, Refusal> {
        if let Phase::Stopping { .. } = self.phase {
            return Err(Refusal::ShuttingDown);
        }
        let number = self.next_inhibitor;
        self.next_inhibitor += 1;
        self.inhibitors.insert(number, Inhibitor { who, why });
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            // Only its end is of interest, and it ends by being dropped.
            let _ = held.await;
            let _ = reporter.send(Background::Released(number)).await;
        });
        Ok(MAX_INHIBIT_DELAY)
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

/// One line in the log for each service whose state is another one.
fn log_changes(before: &[ServiceStatus], after: &[ServiceStatus]) {
    for status in after {
        let old = before.iter().find(|old| old.name == status.name);
        if old.is_some_and(|old| old.state == status.state) {
            continue;
        }
        let service = status.name.as_str();
        match &status.state {
            PublicState::Waiting { .. } => {
                info!(service, "waiting for {}", status.waiting_on.join(", "));
            }
            PublicState::Starting => info!(service, "starting"),
            PublicState::Running { ready: true } => info!(service, "ready"),
            PublicState::Running { ready: false } => info!(service, pid = status.pid, "running, not ready"),
            PublicState::Stopping { reason } => info!(service, reason, "stopping"),
            PublicState::Finished => info!(service, "finished"),
            PublicState::Failed { reason } => error!(service, reason, "failed"),
            PublicState::BackOff { until_ms, reason } => {
                if status.crash_looping {
                    let last = status.last_lines.last().map_or("", String::as_str);
                    error!(service, reason, restarts = status.restarts, last, "it keeps failing");
                } else {
                    warn!(service, reason, until_ms, "ended, to be started again");
                }
            }
        }
    }
}
