//! Devices: modules for everything that is there, then for everything that comes. Their nodes are the kernel's work (devtmpfs).

use std::thread::sleep;
use std::time::Duration;

use garboard_sys::modules::{ModuleError, Modules};
use garboard_sys::uevent::{Listener, Uevent, UeventError, present_modaliases};
use rustix::event::{PollFd, PollFlags, poll};

use crate::kmsg::chain;

/// Bursts of devices are looked at together after this time: a bus reports its children one by one.
const BURST: Duration = Duration::from_millis(20);

/// Rounds over what is there: a driver finds further devices, and their buses others in turn.
const MAX_ROUNDS: usize = 8;

/// Loading cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// Device messages cannot be received.
    #[error("cannot listen for devices")]
    Listen(#[from] UeventError),
    /// The modules' index cannot be read.
    #[error("cannot find modules")]
    Modules(#[from] ModuleError),
    /// Waiting failed.
    #[error("cannot wait for devices")]
    Wait(#[source] std::io::Error),
}

/// Loads modules for all devices, calls `settled` once those that are there have theirs, and goes on for those that come.
///
/// # Errors
/// [`DevicesError`]; a module that does not load is only reported.
pub fn run(settled: impl FnOnce()) -> Result<std::convert::Infallible, DevicesError> {
    // Opened first, so that nothing is missed between.
    let listener = Listener::open()?;
    let modules = Modules::of_running_kernel();
    let mut known = 0;
    for _ in 0..MAX_ROUNDS {
        let aliases = present_modaliases();
        if aliases.len() == known {
            break;
        }
        known = aliases.len();
        load(&modules, &aliases)?;
    }
    settled();
    loop {
        let aliases = receive(&listener)?;
        if !aliases.is_empty() {
            load(&modules, &aliases)?;
        }
    }
}

fn load(modules: &Modules, aliases: &[String]) -> Result<(), ModuleError> {
    for error in modules.load_for_aliases(aliases)? {
        // Often a driver that is for another variant of the device; the machine runs without it.
        eprintln!("{}", chain(&error));
    }
    Ok(())
}

/// Waits for devices; the module aliases of those that came.
fn receive(listener: &Listener) -> Result<Vec<String>, DevicesError> {
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(DevicesError::Wait(error.into())),
    }
    sleep(BURST);
    let mut aliases = Vec::new();
    loop {
        match listener.next_event() {
            Ok(Some(event)) => aliases.extend(wanted(&event).map(str::to_owned)),
            Ok(None) => return Ok(aliases),
            // Too many came at once: what is there now is looked at whole.
            Err(_) => return Ok(present_modaliases()),
        }
    }
}

fn wanted(event: &Uevent) -> Option<&str> {
    event.modalias().filter(|_| matches!(event.action.as_str(), "add" | "change"))
}
