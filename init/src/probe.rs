//! Questions to services: over HTTP, TCP or a unix socket. Programs are asked through the runner, HTTPS by the node agent.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use garboard_supervisor::spec::ProbeAction;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Longest status line that is read, bytes.
const MAX_STATUS_LINE: usize = 128;

/// Asks once. The error says what went wrong, in words.
///
/// # Errors
/// When the service does not serve, or not within `timeout`.
pub async fn ask(action: &ProbeAction, timeout: Duration) -> Result<(), String> {
    let answer = async {
        match action {
            ProbeAction::Http { address, path } => http(*address, path).await,
            ProbeAction::Tcp { address } => {
                TcpStream::connect(address).await.map(drop).map_err(|error| format!("{address}: {error}"))
            }
            ProbeAction::Unix { path } => unix(path).await,
            ProbeAction::Notify {} | ProbeAction::Https { .. } | ProbeAction::Exec { .. } => {
                Err("this probe is not carried out here".to_owned())
            }
        }
    };
    match tokio::time::timeout(timeout, answer).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
    }
}

async fn unix(path: &Path) -> Result<(), String> {
    UnixStream::connect(path).await.map(drop).map_err(|error| format!("{}: {error}", path.display()))
}

/// A request of one line and the first line of its answer need no HTTP library, whose buffers would cost PID 1 more than all else here.
async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{address}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: garboard\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::with_capacity(MAX_STATUS_LINE);
    while !answer.contains(&b'\n') && answer.len() < MAX_STATUS_LINE {
        if stream.read_buf(&mut answer).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status(&answer) {
        Some(status) if (200..300).contains(&status) => Ok(()),
        Some(status) => Err(format!("{address}{path}: status {status}")),
        None => Err(format!("{address}: the answer is not HTTP")),
    }
}

/// The status code of an answer (RFC 9112, section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.trim_end().split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    words.next()?.parse().ok().filter(|code| (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, UnixListener};

    #[test]
    fn status_lines_are_read() {
        let cases: [(&[u8], Option<u16>); 6] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", Some(200)),
            (b"HTTP/1.0 503 \r\n", Some(503)),
            (b"HTTP/1.1 200", Some(200)),
            (b"HTTP/2 200\r\n", None),
            (b"SSH-2.0-x\r\n", None),
            (b"", None),
        ];
        for (answer, code) in cases {
            assert_eq!(status(answer), code, "{:?}", String::from_utf8_lossy(answer));
        }
    }

    async fn http_server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 512];
            let len = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..len].starts_with(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        address
    }

    #[tokio::test]
    async fn http_answers_are_judged() {
        let cases = [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            ("HTTP/1.1 500 Oh\r\n\r\n", Err("status 500")),
            ("", Err("no answer within 100 ms")),
            ("hello\n", Err("not HTTP")),
        ];
        for (answer, expected) in cases {
            let address = http_server(answer).await;
            let result =
                ask(&ProbeAction::Http { address, path: "/healthz".to_owned() }, Duration::from_millis(100)).await;
            match (result, expected) {
                (Ok(()), Ok(())) => {}
                (Err(text), Err(part)) if text.contains(part) => {}
                (result, expected) => panic!("{answer:?}: {result:?} instead of {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn sockets_are_ready_when_they_listen() {
        let timeout = Duration::from_secs(5);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let action = ProbeAction::Unix { path: path.clone() };
        assert!(ask(&action, timeout).await.is_err());
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(ask(&action, timeout).await, Ok(()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let action = ProbeAction::Tcp { address: listener.local_addr().unwrap() };
        assert_eq!(ask(&action, timeout).await, Ok(()));
        drop(listener);
        assert!(ask(&action, timeout).await.is_err());
    }
}
