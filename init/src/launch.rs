//! The executor: a fresh process with one thread that makes a service's files, isolates itself and becomes the service.
//!
//! Its standard input is a socket to PID 1: the order comes in over it, a failure goes out over it, and its closing without a word when
//! the program is executed is the news of success.

use std::convert::Infallible;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use garboard_supervisor::spec::{Directory, RenderedFile, Seccomp, ServiceSpec, UMASK};
use garboard_sys::cgroup::Cgroup;
use garboard_sys::isolate::{Accounts, Capabilities, MountView, Sandbox};
use nix::sys::signal::SigSet;

use crate::kmsg::chain;
use crate::request::{LaunchFailure, LaunchRequest, Task};

/// Exit code of an executor that failed (EX_SOFTWARE of sysexits).
pub const FAILED: i32 = 70;

/// What failed, as a step for people and its cause.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
struct StepError {
    step: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

trait Step<T> {
    /// Names what was tried.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|source| StepError { step: step(), source: source.into() })
    }
}

/// Runs the executor; returns the exit code of one that did not become something else.
pub fn main() -> i32 {
    let mut socket = match take_socket() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("garboard-init launch is for PID 1 only: {error}");
            return FAILED;
        }
    };
    match run(&mut socket) {
        Ok(()) => 0,
        Err(error) => {
            let failure = LaunchFailure { step: error.step, error: chain(error.source.as_ref()) };
            if let Ok(text) = serde_json::to_vec(&failure) {
                // Nobody is left to hear of a failure to report a failure.
                let _ = socket.write_all(&text);
            }
            FAILED
        }
    }
}

/// Moves the socket away from descriptor 0, which becomes /dev/null, to one that closes on execution.
fn take_socket() -> io::Result<UnixStream> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(UnixStream::from(socket))
}

fn run(socket: &mut UnixStream) -> Result<(), StepError> {
    let mut text = Vec::new();
    socket.read_to_end(&mut text).step(|| "read the order of PID 1".to_owned())?;
    let request: LaunchRequest = serde_json::from_slice(&text).step(|| "understand the order of PID 1".to_owned())?;
    drop(text);
    let LaunchRequest { spec, task, cgroup, notify_socket } = request;
    if let Some(path) = &cgroup {
        enter_cgroup(path)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    let accounts = Accounts::load(Path::new("/etc")).step(|| "look up users".to_owned())?;
    match task {
        Task::WriteFiles => prepare(&spec, &accounts),
        Task::Run => {
            prepare(&spec, &accounts)?;
            execute(&spec, &spec.argv, &accounts, &notify_socket).map(|never| match never {})
        }
        Task::Probe { argv } => execute(&spec, &argv, &accounts, &notify_socket).map(|never| match never {}),
    }
}

fn enter_cgroup(path: &Path) -> Result<(), StepError> {
    // The name is below a hierarchy that PID 1 has checked; only its own child is asked for.
    Cgroup::root(path).and_then(|cgroup| cgroup.enter()).step(|| format!("enter cgroup {}", path.display()))
}

/// Makes the directories and files of a service.
fn prepare(spec: &ServiceSpec, accounts: &Accounts) -> Result<(), StepError> {
    for Directory { path, mode, owner } in &spec.directories {
        let owner = owner_of(owner.as_deref(), spec, accounts)?;
        make_directory(path, *mode, owner).step(|| format!("make directory {}", path.display()))?;
    }
    for RenderedFile { path, mode, owner, content } in &spec.files {
        let owner = owner_of(owner.as_deref(), spec, accounts)?;
        write_file(path, *mode, owner, content).step(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn owner_of(owner: Option<&str>, spec: &ServiceSpec, accounts: &Accounts) -> Result<(u32, u32), StepError> {
    let name = owner.unwrap_or(&spec.user);
    accounts.user(name).step(|| format!("look up user {name}"))
}

fn make_directory(path: &Path, mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    fs::create_dir_all(path)?;
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Writes a file whole or not at all; one that is as it should be is not touched, so that who watches it is not woken.
fn write_file(path: &Path, mode: u32, (uid, gid): (u32, u32), content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        chown(path, Some(uid), Some(gid))?;
        return fs::set_permissions(path, fs::Permissions::from_mode(mode));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let fresh = fresh_name(path);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Nobody else may read it before it has its owner and mode.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(content.as_bytes())?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)
}

fn fresh_name(path: &Path) -> PathBuf {
    // Two executors may be at work for one service.
    let mut name = std::ffi::OsString::from(format!(".{}.", std::process::id()));
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Isolates this process and becomes `argv`.
fn execute(
    spec: &ServiceSpec,
    argv: &[String],
    accounts: &Accounts,
    notify_socket: &Path,
) -> Result<Infallible, StepError> {
    let sandbox = sandbox(spec, accounts)?;
    let (program, arguments) = argv.split_first().ok_or("there is none").step(|| "find the program".to_owned())?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("NOTIFY_SOCKET", notify_socket).envs(&spec.env);
    if let Some(name) = spec.argv0.as_ref().filter(|_| argv == spec.argv) {
        command.arg0(name);
    }
    if let Some(ms) = spec.watchdog_ms {
        command.env("WATCHDOG_USEC", ms.saturating_mul(1000).to_string());
    }
    sandbox.enter().step(|| "isolate the service".to_owned())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(spec.umask));
    // Only now: the directory may lie in the service's own view, and must be its user's to enter.
    std::env::set_current_dir(&spec.working_directory)
        .step(|| format!("enter directory {}", spec.working_directory.display()))?;
    // PID 1 blocks the signals that it reads from a descriptor; a mask survives both fork and exec.
    SigSet::empty().thread_set_mask().step(|| "unblock signals".to_owned())?;
    // It also gives SIGPIPE its default action back, which this program's own start took away.
    Err(command.exec()).step(|| format!("execute {program}"))
}

fn sandbox(spec: &ServiceSpec, accounts: &Accounts) -> Result<Sandbox, StepError> {
    let account =
        accounts.account(&spec.user, &spec.supplementary_groups).step(|| format!("look up user {}", spec.user))?;
    let isolation = &spec.isolation;
    let capabilities = match &isolation.capabilities {
        Some(names) => Some(Capabilities::from_names(names).step(|| "read the capabilities".to_owned())?),
        None => None,
    };
    let view = isolation.private_mounts.then(|| MountView {
        read_write: isolation.read_write.clone(),
        inaccessible: isolation.inaccessible.clone(),
        private_tmp: isolation.private_tmp,
        private_devices: isolation.private_devices,
    });
    Ok(Sandbox {
        account,
        view,
        capabilities,
        no_new_privileges: isolation.no_new_privileges,
        seccomp: match isolation.seccomp {
            Seccomp::Service => true,
            Seccomp::Unconfined => false,
        },
        open_files: spec.rlimit_nofile,
        oom_score_adj: spec.cgroup.oom_score_adj,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_is_right_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/config");
        let own = fs::metadata(directory.path()).map(|found| (found.uid(), found.gid())).unwrap();
        write_file(&path, 0o400, own, "one").unwrap();
        let first = fs::metadata(&path).unwrap();
        write_file(&path, 0o440, own, "one").unwrap();
        let second = fs::metadata(&path).unwrap();
        assert_eq!((first.ino(), second.mode() & 0o777), (second.ino(), 0o440));
        write_file(&path, 0o440, own, "two").unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }
}
