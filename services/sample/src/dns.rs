//! A DNS query over UDP as RFC 1035 has it, with the server and the search list of /etc/resolv.conf.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::Outcome;

const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;
const TYPES: [(&str, u16); 6] = [("A", 1), ("CNAME", 5), ("PTR", 12), ("TXT", 16), ("AAAA", 28), ("SRV", 33)];

/// Prints the answers for `name`, or why there are none.
pub fn resolve(name: &str, kind: &str) -> Outcome {
    let kind = TYPES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(kind))
        .ok_or_else(|| format!("{kind:?} is no known type; known: A, AAAA, CNAME, PTR, SRV, TXT"))?;
    for record in look_up(name, kind.1)? {
        println!("{}", record.text);
    }
    Ok(())
}

/// The IPv4 addresses of a name.
pub fn addresses(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let records = look_up(name, 1)?;
    Ok(records.iter().filter_map(|record| record.address).map(|address| SocketAddr::new(address, port)).collect())
}

/// One record of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    text: String,
    address: Option<IpAddr>,
}

/// What /etc/resolv.conf says.
#[derive(Debug, PartialEq, Eq)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")).next_back();
                    resolver.ndots = ndots.and_then(|word| word.parse().ok()).unwrap_or(resolver.ndots);
                }
                _ => {}
            }
        }
        resolver
    }

    /// The full names to ask for, in order (resolv.conf(5), `ndots`).
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let plain = if name.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(plain, name.to_owned());
        names
    }
}

/// Asks for each candidate until one has answers.
fn look_up(name: &str, kind: u16) -> Result<Vec<Record>, String> {
    let path = "/etc/resolv.conf";
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let resolver = Resolver::parse(&text);
    let mut last = format!("{path} names no server");
    for server in &resolver.servers {
        for candidate in resolver.candidates(name) {
            match ask(*server, &candidate, kind) {
                Ok(records) if !records.is_empty() => return Ok(records),
                Ok(_) => last = format!("{candidate}: no record of this type"),
                Err(error) => last = format!("{candidate}: {error}"),
            }
        }
    }
    Err(last)
}

/// One question to one server.
fn ask(server: IpAddr, name: &str, kind: u16) -> Result<Vec<Record>, String> {
    let failed = |error: std::io::Error| format!("asking {server}: {error}");
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    socket.connect((server, 53)).map_err(failed)?;
    socket.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    // The port of the socket is random, which is what tells the answer to this question from others.
    let id = std::process::id() as u16;
    let question = question(id, name, kind)?;
    let mut answer = [0_u8; 4096];
    for attempt in 1..=ATTEMPTS {
        socket.send(&question).map_err(failed)?;
        match socket.recv(&mut answer) {
            Ok(length) => return parse(&answer[..length], id).ok_or("the answer cannot be read".to_owned())?,
            Err(error) if attempt == ATTEMPTS => return Err(failed(error)),
            Err(_) => {}
        }
    }
    Err("no answer".to_owned())
}

fn question(id: u16, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    // Recursion desired, one question.
    let mut message = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        message.push(length.ok_or_else(|| format!("{name:?} is no domain name"))?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    // Class IN.
    message.extend(1_u16.to_be_bytes());
    Ok(message)
}

/// The records of the answer section. `None`: the message is damaged or answers another question.
fn parse(message: &[u8], id: u16) -> Option<Result<Vec<Record>, String>> {
    if word(message, 0)? != id {
        return None;
    }
    match word(message, 2)? & 0x000f {
        0 => {}
        3 => return Some(Err("no such name".to_owned())),
        code => return Some(Err(format!("the server answers with error {code}"))),
    }
    let mut at = 12;
    for _ in 0..word(message, 4)? {
        at = name(message, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..word(message, 6)? {
        let (owner, fixed) = name(message, at)?;
        let (kind, length) = (word(message, fixed)?, usize::from(word(message, fixed + 8)?));
        let ttl = u32::from(word(message, fixed + 4)?) << 16 | u32::from(word(message, fixed + 6)?);
        at = fixed + 10 + length;
        let data = message.get(fixed + 10..at)?;
        let address = address(kind, data);
        let mut text = format!("{owner}. {ttl} ");
        match kind {
            1 | 28 => write!(text, "{} {}", if kind == 1 { "A" } else { "AAAA" }, address?).ok()?,
            5 => write!(text, "CNAME {}.", name(message, fixed + 10)?.0).ok()?,
            12 => write!(text, "PTR {}.", name(message, fixed + 10)?.0).ok()?,
            16 => write!(text, "TXT {:?}", String::from_utf8_lossy(data.get(1..)?)).ok()?,
            33 => {
                let (priority, weight, port) = (word(data, 0)?, word(data, 2)?, word(data, 4)?);
                write!(text, "SRV {priority} {weight} {port} {}.", name(message, fixed + 16)?.0).ok()?;
            }
            other => write!(text, "TYPE{other} ({length} bytes)").ok()?,
        }
        records.push(Record { text, address });
    }
    Some(Ok(records))
}

fn address(kind: u16, data: &[u8]) -> Option<IpAddr> {
    match kind {
        1 => <[u8; 4]>::try_from(data).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        28 => <[u8; 16]>::try_from(data).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// The domain name at `at`, and where what follows it begins (RFC 1035 section 4.1.4).
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut end = None;
    // Each pointer has to lead backwards, so this ends.
    let mut limit = message.len();
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((labels.join("."), end.unwrap_or(at + 1))),
            0xc0.. => {
                let target = usize::from(word(message, at)? & 0x3fff);
                end.get_or_insert(at + 2);
                if target >= limit.min(at) {
                    return None;
                }
                (limit, at) = (target, target);
            }
            1..0x40 => {
                labels.push(String::from_utf8_lossy(message.get(at + 1..at + 1 + length)?).into_owned());
                at += 1 + length;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_comes_first_for_names_with_few_dots() {
        let resolver = Resolver::parse("nameserver 10.96.0.10\nsearch a.svc svc\noptions ndots:2 edns0\n");
        assert_eq!(resolver.servers, ["10.96.0.10".parse::<IpAddr>().unwrap_or(Ipv4Addr::LOCALHOST.into())]);
        assert_eq!(resolver.candidates("web.b"), ["web.b.a.svc", "web.b.svc", "web.b"]);
        assert_eq!(resolver.candidates("x.y.z"), ["x.y.z", "x.y.z.a.svc", "x.y.z.svc"]);
        assert_eq!(resolver.candidates("web.b."), ["web.b"]);
    }

    #[test]
    fn an_answer_with_a_compressed_name_is_read() {
        let mut message = question(7, "web.test", 1).unwrap_or_default();
        message[2] = 0x81;
        message[7] = 1;
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 1, 2, 3]);
        let record =
            Record { text: "web.test. 30 A 10.1.2.3".to_owned(), address: Some(Ipv4Addr::new(10, 1, 2, 3).into()) };
        assert_eq!(parse(&message, 7), Some(Ok(vec![record])));
        assert_eq!(parse(&message, 8), None);
        for length in 0..message.len() {
            assert!(parse(&message[..length], 7).is_none_or(|outcome| outcome.is_ok_and(|records| records.is_empty())));
        }
    }

    #[test]
    fn pointers_in_a_circle_end() {
        let mut message = vec![0; 12];
        message.extend([0xc0, 12]);
        assert_eq!(name(&message, 12), None);
    }
}
