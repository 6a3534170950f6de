//! Processes: started, signalled and awaited through descriptors that cannot come to mean another process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};

use nix::sys::signal::{self, SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
pub use rustix::process::Pid;
use rustix::process::{PidfdFlags, WaitOptions, WaitStatus};

/// What failed with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program's path.
        program: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No descriptor for a process was to be had.
    #[error("cannot open a descriptor for process {pid}")]
    Open {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The number is no signal's.
    #[error("{0} is not the number of a signal")]
    NotASignal(i32),
    /// A signal could not be sent.
    #[error("cannot send signal {signal} to process {pid}")]
    Signal {
        /// The process, -1 for all.
        pid: i32,
        /// The signal's number.
        signal: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Waiting for children failed.
    #[error("cannot wait for children")]
    Wait(#[source] io::Error),
    /// Signals could not be turned into a readable descriptor.
    #[error("cannot receive signals through a descriptor")]
    SignalFd(#[source] io::Error),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with a code in 0..=255.
    Code(i32),
    /// By a signal.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}

impl Exit {
    /// The meaning of a raw wait status (wait(2)); none for a process that only stopped or continued.
    pub fn from_raw(status: i32) -> Option<Self> {
        let low = status & 0x7f;
        match low {
            0 => Some(Self::Code((status >> 8) & 0xff)),
            0x7f => None,
            number => (status != 0xffff).then_some(Self::Signal { number, core_dumped: status & 0x80 != 0 }),
        }
    }

    /// Whether it ended by itself with 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal { number, core_dumped } => {
                let name = signal::Signal::try_from(number).map_or("unknown signal", signal::Signal::as_str);
                write!(f, "killed by {name} ({number})")?;
                if core_dumped { f.write_str(", core dumped") } else { Ok(()) }
            }
        }
    }
}

/// A running (or not yet reaped) process, held by a pidfd: signals through it never reach another process. The descriptor is readable
/// once the process has ended, which is what an event loop waits for. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Opens a child that was not reaped yet, so that its number cannot have been given away.
    ///
    /// # Errors
    /// [`ProcessError::Open`] when there is no such process.
    pub fn open(pid: Pid) -> Result<Self, ProcessError> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|source| ProcessError::Open { pid: pid.as_raw_nonzero().get(), source: source.into() })?;
        Ok(Self { pid, pidfd })
    }

    /// The process's number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; a process that has already ended is no error.
    ///
    /// # Errors
    /// [`ProcessError::NotASignal`] and [`ProcessError::Signal`].
    pub fn signal(&self, number: i32) -> Result<(), ProcessError> {
        let signal = rustix::process::Signal::from_named_raw(number).ok_or(ProcessError::NotASignal(number))?;
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(source) => Err(ProcessError::Signal {
                pid: self.pid.as_raw_nonzero().get(),
                signal: number,
                source: source.into(),
            }),
        }
    }

    /// Kills the process.
    ///
    /// # Errors
    /// [`ProcessError::Signal`].
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.signal(libc::SIGKILL)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A process just started, with those ends of its pipes that the command asked for.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub process: Process,
    /// The end that writes to its standard input.
    pub stdin: Option<ChildStdin>,
    /// The end that reads its standard output.
    pub stdout: Option<ChildStdout>,
    /// The end that reads its standard error.
    pub stderr: Option<ChildStderr>,
}

/// Starts a program. The standard library gives the child an empty signal mask and default signal actions, whatever this process blocks.
///
/// To be called from the thread that also calls [`reap`]: a child that ended at once then still bears its number while its descriptor
/// is opened.
///
/// # Errors
/// [`ProcessError::Spawn`] (also when the program does not exist) and [`ProcessError::Open`].
pub fn spawn(command: &mut Command) -> Result<Spawned, ProcessError> {
    let mut child = command.spawn().map_err(|source| ProcessError::Spawn {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    let id = child.id();
    let no_process = || ProcessError::Open { pid: id.cast_signed(), source: Errno::SRCH.into() };
    let pid = Pid::from_raw(id.cast_signed()).ok_or_else(no_process)?;
    let process = Process::open(pid)?;
    Ok(Spawned { process, stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() })
}

/// Reaps one ended child, if there is one, without waiting. Call it until it returns none: several children may hide behind one SIGCHLD.
///
/// # Errors
/// [`ProcessError::Wait`]; having no children at all is none.
pub fn reap() -> Result<Option<(Pid, Exit)>, ProcessError> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => match Exit::from_raw(WaitStatus::as_raw(status)) {
                Some(exit) => return Ok(Some((pid, exit))),
                None => continue,
            },
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(source) => return Err(ProcessError::Wait(source.into())),
        }
    }
}

/// Reaps every ended child and calls `ended` for each.
///
/// # Errors
/// As [`reap`]; the children reaped before were reported.
pub fn reap_all(mut ended: impl FnMut(Pid, Exit)) -> Result<(), ProcessError> {
    while let Some((pid, exit)) = reap()? {
        ended(pid, exit);
    }
    Ok(())
}

/// Waits until a child of this process ended, and reaps it.
///
/// # Errors
/// [`ProcessError::Wait`], also when it is no child of this process.
pub fn wait(pid: Pid) -> Result<Exit, ProcessError> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(exit) = Exit::from_raw(status.as_raw()) {
                    return Ok(exit);
                }
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(source) => return Err(ProcessError::Wait(source.into())),
        }
    }
}

/// Sends a signal to every process but PID 1 and the caller: the last steps of a shutdown. Kernel threads ignore it.
///
/// # Errors
/// [`ProcessError::NotASignal`] and [`ProcessError::Signal`]; that there is no other process is none.
pub fn signal_everyone(number: i32) -> Result<(), ProcessError> {
    let named = signal::Signal::try_from(number).map_err(|_| ProcessError::NotASignal(number))?;
    match signal::kill(nix::unistd::Pid::from_raw(-1), named) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(source) => Err(ProcessError::Signal { pid: -1, signal: number, source: source.into() }),
    }
}

/// Makes orphaned descendants children of this process, as they are of PID 1 by nature.
///
/// # Errors
/// [`ProcessError::Wait`].
pub fn adopt_orphans() -> Result<(), ProcessError> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|source| ProcessError::Wait(source.into()))
}

/// Signals as a stream of numbers from a non-blocking descriptor, for event loops.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in the calling thread (start no thread before, or they may be delivered there) and opens the descriptor.
    ///
    /// # Errors
    /// [`ProcessError::NotASignal`] and [`ProcessError::SignalFd`].
    pub fn block(numbers: &[i32]) -> Result<Self, ProcessError> {
        let mut mask = SigSet::empty();
        for &number in numbers {
            mask.add(signal::Signal::try_from(number).map_err(|_| ProcessError::NotASignal(number))?);
        }
        let failed = |source: nix::errno::Errno| ProcessError::SignalFd(source.into());
        signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(failed)?;
        SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self).map_err(failed)
    }

    /// The next signal that has arrived, none if there is none now.
    ///
    /// # Errors
    /// [`ProcessError::SignalFd`].
    pub fn next_signal(&self) -> Result<Option<i32>, ProcessError> {
        match self.0.read_signal() {
            Ok(info) => Ok(info.map(|info| info.ssi_signo.cast_signed())),
            Err(nix::errno::Errno::EINTR) => Ok(None),
            Err(source) => Err(ProcessError::SignalFd(source.into())),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_status_is_understood() {
        let cases = [
            ("success", 0x0000, Some(Exit::Code(0))),
            ("code 3", 0x0300, Some(Exit::Code(3))),
            ("code 255", 0xff00, Some(Exit::Code(255))),
            ("sigkill", 9, Some(Exit::Signal { number: 9, core_dumped: false })),
            ("sigsegv with core", 0x8b, Some(Exit::Signal { number: 11, core_dumped: true })),
            ("stopped by sigstop", 0x137f, None),
            ("continued", 0xffff, None),
        ];
        for (name, raw, expected) in cases {
            assert_eq!(Exit::from_raw(raw), expected, "{name}");
        }
    }

    #[test]
    fn exits_read_as_words() {
        assert_eq!(Exit::Code(2).to_string(), "exited with 2");
        assert_eq!(Exit::Signal { number: 11, core_dumped: true }.to_string(), "killed by SIGSEGV (11), core dumped");
    }
}
