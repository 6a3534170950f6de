//! What the first stage says: everything to the kernel's log, and what a person must know to the consoles.

use std::error::Error;
use std::time::Duration;

use garboard_sys::console::Consoles;
use garboard_sys::kmsg::{self, Level, Writer};

/// The two places to speak to; before [`Report::open`], and if they cannot be opened, words are lost.
#[derive(Debug, Default)]
pub struct Report {
    log: Option<Writer>,
    consoles: Option<Consoles>,
}

impl Report {
    /// Opens both, once `/dev` and `/proc` are there.
    pub fn open(&mut self) {
        // Without the right to lift the limit, at most some messages are lost.
        let _ = kmsg::unlimit_processes();
        self.log = Writer::open("garboard-initrd").ok();
        self.consoles = Consoles::open().ok();
    }

    /// Writes to the kernel's log.
    pub fn log(&mut self, level: Level, message: &str) {
        if let Some(log) = &mut self.log {
            log.log(level, message);
        }
    }

    /// Writes a line to the consoles and the log.
    pub fn say(&mut self, level: Level, message: &str) {
        self.log(level, message);
        if let Some(consoles) = &mut self.consoles {
            consoles.write(&format!("\r\ngarboard: {message}\r\n"));
        }
    }

    /// Tells why the machine cannot start, what to do, and what happens next.
    pub fn failure(&mut self, error: &dyn Error, advice: &str, until_restart: Duration) {
        if self.consoles.is_none() {
            self.open();
        }
        self.log(Level::Critical, &format!("cannot start: {}", chain(error)));
        let text = format!(
            "\r\n\r\nGarboard cannot start.\r\n\r\n  Reason:  {}\r\n  Advice:  {advice}\r\n\r\n\
             The machine restarts in {} seconds.\r\n",
            chain(error),
            until_restart.as_secs()
        );
        if let Some(consoles) = &mut self.consoles {
            consoles.write(&text);
        }
    }
}

/// An error with its sources.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
