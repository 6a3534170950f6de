//! The web server: a thread per connection, one request each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::Outcome;
use crate::stop::Stop;

/// A client that says nothing is let go after this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request head that is read, bytes.
const HEAD_LIMIT: u64 = 16 * 1024;

/// Serves until stopped; `grace`: seconds that it goes on serving after SIGTERM.
pub fn serve(port: u16, grace: u64) -> Outcome {
    let stop = Stop::block()?;
    let (listener, address) = listen(port)?;
    println!("serving on {address}");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            match connection {
                Ok(stream) => drop(std::thread::spawn(move || answer(stream))),
                // Out of descriptors, most likely: some will be free soon.
                Err(error) => {
                    eprintln!("accepting a connection: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    });
    let signal = stop.wait()?;
    println!("{signal}: stopping in {grace} s");
    std::thread::sleep(Duration::from_secs(grace));
    println!("stopped");
    Ok(())
}

/// All addresses of both families where there is IPv6, else those of IPv4.
fn listen(port: u16) -> Result<(TcpListener, String), String> {
    let both = format!("[::]:{port}");
    if let Ok(listener) = TcpListener::bind(&both) {
        return Ok((listener, both));
    }
    let address = format!("0.0.0.0:{port}");
    TcpListener::bind(&address)
        .map(|listener| (listener, address.clone()))
        .map_err(|error| format!("listening on {address}: {error}"))
}

fn answer(stream: TcpStream) {
    if let Err(error) = exchange(stream) {
        eprintln!("answering a request: {error}");
    }
}

fn exchange(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let peer = stream.peer_addr()?;
    let head = read_head(&stream)?;
    if head.is_empty() {
        // A connection that says nothing, as TCP probes make them.
        return Ok(());
    }
    let path = path(&head);
    let (status, body) = match path {
        "/" => ("200 OK", page(&peer.to_string())),
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/headers" => ("200 OK", head.clone()),
        _ => ("404 Not Found", format!("nothing at {path}\n")),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The request line and the headers, up to the empty line.
fn read_head(stream: &TcpStream) -> std::io::Result<String> {
    let mut reader = BufReader::new(stream.take(HEAD_LIMIT));
    let mut head = String::new();
    loop {
        let begin = head.len();
        reader.read_line(&mut head)?;
        if head[begin..].trim_end().is_empty() {
            return Ok(head);
        }
    }
}

/// The path of a request's first line, without its query: the API server's proxy passes on the query of whoever asks it.
fn path(head: &str) -> &str {
    let target = head.split_whitespace().nth(1).unwrap_or("/");
    target.split('?').next().unwrap_or(target)
}

fn page(client: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("Garboard sample {} on {}\nclient: {client}\n", env!("CARGO_PKG_VERSION"), host.trim())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_query_is_no_part_of_the_path() {
        for (head, path) in [
            ("GET / HTTP/1.1\r\n\r\n", "/"),
            ("GET /?timeout=10s HTTP/1.1\r\n\r\n", "/"),
            ("GET /healthz?verbose HTTP/1.1\r\n\r\n", "/healthz"),
            ("", "/"),
        ] {
            assert_eq!(super::path(head), path, "{head:?}");
        }
    }
}
