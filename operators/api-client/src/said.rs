//! What is logged, for tests.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `body` logs, each with its level and without the error's text.
pub(crate) fn said(body: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).without_time();
    tracing::subscriber::with_default(lines.with_target(false).with_ansi(false).finish(), body);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().filter_map(|line| line.trim().split(" error=").next().map(str::to_owned)).collect()
}
