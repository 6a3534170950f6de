//! Restart, power off, and what the keyboard may do about it (reboot(2)).

use std::convert::Infallible;
use std::io;

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Start again through the firmware.
    Reboot,
    /// Switch off.
    Off,
    /// Stop, with the power left on.
    Halt,
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// The machine goes on.
    #[error("cannot {0:?} the machine")]
    Change(Power, #[source] io::Error),
    /// Ctrl-Alt-Del keeps its meaning.
    #[error("cannot change what ctrl-alt-del does")]
    CtrlAltDel(#[source] io::Error),
}

/// Stops the kernel at once: nothing is written, nobody is asked. Unmount first.
///
/// # Errors
/// [`PowerError::Change`] without the right to (outside of PID 1's namespace, for one); else this does not return.
pub fn change(power: Power) -> Result<Infallible, PowerError> {
    let mode = match power {
        Power::Reboot => RebootMode::RB_AUTOBOOT,
        Power::Off => RebootMode::RB_POWER_OFF,
        Power::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    reboot(mode).map_err(|source| PowerError::Change(power, source.into()))
}

/// Makes Ctrl-Alt-Del send SIGINT to PID 1 instead of restarting at once.
///
/// # Errors
/// [`PowerError::CtrlAltDel`].
pub fn ctrl_alt_del_as_signal() -> Result<(), PowerError> {
    set_cad_enabled(false).map_err(|source| PowerError::CtrlAltDel(source.into()))
}

/// Writes everything that is dirty, on all file systems, and waits for it.
pub fn sync() {
    rustix::fs::sync();
}
