//! How a process ended, as the state machine and people see it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
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
        match status & 0x7f {
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

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal { number, core_dumped } => {
                match signal_name(number) {
                    Some(name) => write!(f, "killed by {name}")?,
                    None => write!(f, "killed by signal {number}")?,
                }
                if core_dumped { f.write_str(", core dumped") } else { Ok(()) }
            }
        }
    }
}

/// The usual name of a signal on Linux (signal(7)).
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_status_has_a_meaning() {
        let cases = [
            (0x0000, Some(Exit::Code(0)), "exited with 0"),
            (0x0300, Some(Exit::Code(3)), "exited with 3"),
            (0xff00, Some(Exit::Code(255)), "exited with 255"),
            (0x0009, Some(Exit::Signal { number: 9, core_dumped: false }), "killed by SIGKILL"),
            (0x008b, Some(Exit::Signal { number: 11, core_dumped: true }), "killed by SIGSEGV, core dumped"),
            (0x0025, Some(Exit::Signal { number: 37, core_dumped: false }), "killed by signal 37"),
            (0x137f, None, ""),
            (0xffff, None, ""),
        ];
        for (raw, exit, text) in cases {
            assert_eq!(Exit::from_raw(raw), exit, "{raw:#x}");
            assert_eq!(exit.map(|e| e.to_string()).unwrap_or_default(), text, "{raw:#x}");
        }
    }
}
