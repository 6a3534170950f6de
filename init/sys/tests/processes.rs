//! Processes and control groups against this kernel. One test function a program: reaping takes any child of the process.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use garboard_sys::cgroup::Cgroup;
use garboard_sys::process::{self, Exit, ProcessError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};

fn wait_for(fd: impl AsFd, flags: PollFlags) {
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    let timeout = PollTimeout::try_from(Duration::from_secs(10)).unwrap();
    assert_eq!(poll(&mut fds, timeout).unwrap(), 1, "nothing happened in ten seconds");
}

#[test]
fn processes_are_started_signalled_grouped_killed_and_reaped() {
    let signals = process::Signals::block(&[Signal::SIGUSR1 as i32]).unwrap();
    assert_eq!(signals.next_signal().unwrap(), None);
    raise(Signal::SIGUSR1).unwrap();
    wait_for(&signals, PollFlags::POLLIN);
    assert_eq!(signals.next_signal().unwrap(), Some(Signal::SIGUSR1 as i32));
    assert_eq!(signals.next_signal().unwrap(), None);
    assert!(matches!(process::spawn(&mut Command::new("/not/there")), Err(ProcessError::Spawn { .. })));
    assert_eq!(process::reap().unwrap(), None, "no children is no error");

    // Ends by itself; the descriptor tells, and the code arrives.
    let child = process::spawn(Command::new("/bin/sh").args(["-c", "exit 7"]).stdout(Stdio::piped())).unwrap();
    assert!(child.stdout.is_some() && child.stdin.is_none());
    wait_for(&child.process, PollFlags::POLLIN);
    child.process.signal(15).unwrap();
    let mut seen = Vec::new();
    process::reap_all(|pid, exit| seen.push((pid, exit))).unwrap();
    assert_eq!(seen, [(child.process.pid(), Exit::Code(7))]);
    child.process.kill().unwrap();
    assert!(matches!(child.process.signal(999), Err(ProcessError::NotASignal(999))));

    // Orphans of a dead child become ours.
    process::adopt_orphans().unwrap();
    let parent =
        process::spawn(Command::new("/bin/sh").args(["-c", "sleep 30 & echo $!; exit 0"]).stdout(Stdio::piped()))
            .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.unwrap()), &mut line).unwrap();
    assert_eq!(process::wait(parent.process.pid()).unwrap(), Exit::Code(0));
    let orphan = process::Process::open(process::Pid::from_raw(line.trim().parse().unwrap()).unwrap()).unwrap();
    orphan.kill().unwrap();
    assert_eq!(process::wait(orphan.pid()).unwrap(), Exit::Signal { number: 9, core_dumped: false });

    let Some(root) = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().find_map(|p| Cgroup::root(Path::new(p)).ok())
    else {
        return;
    };
    let slice = root.child(format!("garboard-test-{}", std::process::id()));
    let group = slice.child("service");
    group.create().unwrap();
    group.create().unwrap();
    assert!(!group.populated().unwrap());
    let events = group.events().unwrap();
    let child = process::spawn(Command::new("/bin/sh").args(["-c", "trap '' TERM; sleep 30 & sleep 30"])).unwrap();
    group.add(child.process.pid()).unwrap();
    assert!(group.populated().unwrap() && slice.populated().unwrap());
    assert!(group.processes().unwrap().contains(&child.process.pid()));
    assert!(group.cpu_usec().is_ok());
    assert!(group.remove().is_err(), "a group with processes stays");
    let error = group.write("memory.no", "1").unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("memory.no"), "{error}");
    drop(events);
    let events = group.events().unwrap();
    std::io::Read::read_to_string(&mut (&events), &mut String::new()).unwrap();
    group.kill().unwrap();
    while group.populated().unwrap() {
        wait_for(&events, PollFlags::POLLPRI);
    }
    assert_eq!(process::wait(child.process.pid()).unwrap(), Exit::Signal { number: 9, core_dumped: false });
    // The background process was adopted.
    while process::reap().unwrap().is_some() {}
    slice.remove().unwrap();
    slice.remove().unwrap();
    assert!(!slice.exists() && !group.populated().unwrap());
    group.kill().unwrap();
}
