//! Whether the machine's own API server answers in time.
//!
//! It is asked more often than PID 1 has it probed, because a hung one must give up the address within a second or so, and so the
//! connection is kept: a handshake twice a second would be felt on an idle machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::probes::{self, ProbeError};

/// Longest time that an answer may take.
const LIMIT: Duration = Duration::from_millis(700);
/// Longest answer that is read, bytes.
const ANSWER_BYTES: usize = 4096;

type Connection = TlsStream<TcpStream>;

/// Asks an HTTPS server again and again.
#[derive(Debug)]
pub struct Questions {
    address: SocketAddr,
    path: &'static str,
    ca_file: PathBuf,
    connection: Option<Connection>,
}

impl Questions {
    /// For the server at an address, whose certificate is signed by an authority in `ca_file`.
    pub fn new(address: SocketAddr, path: &'static str, ca_file: &Path) -> Self {
        Self { address, path, ca_file: ca_file.to_owned(), connection: None }
    }

    /// Asks once. A call that is given up loses the connection and nothing else.
    ///
    /// # Errors
    /// [`ProbeError`] when there is no answer in time, or it is not a good one.
    pub async fn ask(&mut self) -> Result<(), ProbeError> {
        let kept = self.connection.take();
        let asked = async {
            if let Some(connection) = kept
                && let Ok(answered) = self.get(connection).await
            {
                return Ok(answered);
            }
            // There is none yet, or the server has closed it.
            let connection = probes::connect(self.address, &self.ca_file, None).await?;
            self.get(connection).await
        };
        let answered = timeout(LIMIT, asked).await.map_err(|_| ProbeError::Timeout(self.address))??;
        self.connection = answered;
        Ok(())
    }

    /// Ends the connection.
    pub fn pause(&mut self) {
        self.connection = None;
    }

    /// Reads a good answer whole; returns the connection if it can be used again.
    async fn get(&self, mut connection: Connection) -> Result<Option<Connection>, ProbeError> {
        let Self { address, path, .. } = self;
        let broken = |source| ProbeError::Connection { address: *address, source };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.map_err(broken)?;
        connection.flush().await.map_err(broken)?;
        let mut answer = Vec::new();
        loop {
            match read(&answer) {
                Answer::Bad(status) => return Err(ProbeError::Status { path: (*path).to_owned(), status }),
                Answer::Good { again } => return Ok(again.then_some(connection)),
                Answer::Part => {}
            }
            if connection.read_buf(&mut answer).await.map_err(broken)? == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// What has been read of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Not enough to say anything.
    Part,
    /// It is good; the connection can be used `again` where the answer is known to be over.
    Good { again: bool },
    /// It is not good, by its first line.
    Bad(String),
}

fn read(answer: &[u8]) -> Answer {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let Some(head) = head else {
        return if answer.len() < ANSWER_BYTES { Answer::Part } else { Answer::Bad("too long an answer".to_owned()) };
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    if !probes::is_good(status) {
        return Answer::Bad(status.to_owned());
    }
    let fields: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| value.trim());
    let length = field("content-length").and_then(|length| length.parse::<usize>().ok());
    let body = answer.len() - head - 4;
    match length.filter(|length| *length <= ANSWER_BYTES && field("connection") != Some("close")) {
        None => Answer::Good { again: false },
        Some(length) if body < length => Answer::Part,
        Some(length) => Answer::Good { again: body == length },
    }
}

#[cfg(test)]
#[path = "question_tests.rs"]
mod tests;
