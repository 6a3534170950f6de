//! What the operators ask the API server for, by its audit log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Counts of requests; watches, which are meant to last, are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    /// All of them.
    pub all: f64,
    /// Those that write a status of a pool, which every machine reads.
    pub pool_statuses: f64,
    /// What is written, as JSON.
    pub bytes: f64,
    /// Those that were not answered as asked: conflicts, objects that are not there, servers that are busy.
    pub refused: f64,
}

impl Requests {
    /// All those in an audit log; none when there is no log yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_audit_log(path: &Path) -> Result<Self> {
        let log = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            log => log.context("read the audit log")?,
        };
        let mut requests = Self::default();
        for line in BufReader::new(log).lines() {
            // The last line may not be whole yet.
            if let Ok(entry) = serde_json::from_str(&line.context("read the audit log")?) {
                requests.note(&entry);
            }
        }
        Ok(requests)
    }

    /// Those since an earlier look.
    pub fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            pool_statuses: self.pool_statuses - before.pool_statuses,
            bytes: self.bytes - before.bytes,
            refused: self.refused - before.refused,
        }
    }

    fn note(&mut self, entry: &Value) {
        let verb = entry["verb"].as_str().unwrap_or_default();
        if verb == "watch" || entry["stage"] != "ResponseComplete" {
            return;
        }
        self.all += 1.0;
        if entry["responseStatus"]["code"].as_u64().is_some_and(|code| code >= 400) {
            self.refused += 1.0;
        }
        if matches!(verb, "get" | "list") {
            return;
        }
        if (&entry["objectRef"]["resource"], &entry["objectRef"]["subresource"])
            == (&"machinepools".into(), &"status".into())
        {
            self.pool_statuses += 1.0;
        }
        if let body @ Value::Object(_) = &entry["requestObject"] {
            self.bytes += u32::try_from(body.to_string().len()).map_or(f64::MAX, f64::from);
        }
    }
}
