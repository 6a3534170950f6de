//! The HTTP client.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::Outcome;
use crate::dns;

/// Longest wait for a connection, and for each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the body at `url`.
pub fn get(url: &str) -> Outcome {
    let (host, port, path) = split(url)?;
    let mut stream = connect(host, port)?;
    let failed = |error: std::io::Error| format!("{url}: {error}");
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{url}: the answer is not HTTP"))?;
    let status: u16 = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| format!("{url}: the answer has no status"))?;
    print!("{body}");
    if status >= 400 { Err(format!("{url}: status {status}")) } else { Ok(()) }
}

/// Connects to the first address that answers. Names are looked up as `resolve` does it: an image
/// without libc's configuration has no other way.
fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let literal = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    let addresses = match host.parse::<std::net::Ipv4Addr>().is_ok() || host.starts_with('[') {
        true => literal.map_err(|error| format!("{host}: {error}"))?.collect(),
        false => dns::addresses(host, port)?,
    };
    let mut last = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}

/// Host, port and path of an `http://` URL.
fn split(url: &str) -> Result<(&str, u16, &str), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} does not begin with http://"))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    // The colons of an IPv6 address are inside of its brackets.
    match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => Ok((host, port.parse().map_err(|_| format!("{port:?} is no port"))?, path)),
        None => Ok((authority, 80, path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_at_the_right_places() {
        let cases = [
            ("http://web", Ok(("web", 80, "/"))),
            ("http://web:8080/a/b?c", Ok(("web", 8080, "/a/b?c"))),
            ("http://[fd00::1]:81/", Ok(("[fd00::1]", 81, "/"))),
            ("http://[fd00::1]", Ok(("[fd00::1]", 80, "/"))),
            ("http://web:x/", Err("\"x\" is no port".to_owned())),
            ("https://web/", Err("https://web/ does not begin with http://".to_owned())),
        ];
        for (url, wanted) in cases {
            assert_eq!(split(url), wanted, "{url}");
        }
    }
}
