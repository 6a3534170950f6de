//! The QEMU machine protocol (QMP): one command at a time over its unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to a running QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode; commands may take up to `limit` each.
    ///
    /// # Errors
    /// When the socket does not answer as QMP.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
        stream.set_read_timeout(Some(limit)).context("set the read timeout")?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.message()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and gives what it returned; events on the way are passed over.
    ///
    /// # Errors
    /// What QEMU said against it.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.reader.get_mut().write_all(line.as_bytes()).with_context(|| format!("send {command}"))?;
        loop {
            let message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Runs a command of the human monitor, for what QMP lacks.
    ///
    /// # Errors
    /// When the monitor prints anything: the commands used here are silent when they succeed.
    pub fn monitor(&mut self, command: &str) -> Result<()> {
        let printed = self.execute("human-monitor-command", &json!({ "command-line": command }))?;
        match printed.as_str().map(str::trim) {
            Some("") | None => Ok(()),
            Some(complaint) => bail!("{command}: {complaint}"),
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("read from QEMU")? == 0 {
            bail!("QEMU closed its socket");
        }
        serde_json::from_str(&line).with_context(|| format!("parse {line:?}"))
    }
}
