//! Clients, upstream servers and the daemon as a process.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use garboard_dns::listen;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Clients, the server and upstream servers tell each other apart by address.
pub const CLIENT: &str = "127.0.0.2:0";
const UPSTREAM: &str = "127.0.0.3:0";
pub const LIMIT: Duration = Duration::from_secs(20);
pub const PATIENCE: Duration = Duration::from_secs(6);

pub fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

pub fn question(owner: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), kind));
    message
}

pub fn exchange_udp(server: SocketAddr, message: &Message) -> std::io::Result<Message> {
    let socket = UdpSocket::bind(CLIENT)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // A connected socket is told at once when nobody listens.
    socket.connect(server)?;
    socket.send(&message.to_vec().unwrap())?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

pub fn ask(server: SocketAddr, owner: &str, kind: RecordType) -> Message {
    let answer = exchange_udp(server, &question(owner, kind)).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries[0].name), (4711, &name(owner)));
    answer
}

pub fn ask_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = message.to_vec().unwrap();
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

pub fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// An upstream server that knows `www.example.com` and says of everything else that it does not exist.
pub struct Upstream {
    pub address: SocketAddr,
    pub asked: Arc<AtomicUsize>,
}

pub fn upstream() -> Upstream {
    let socket = UdpSocket::bind(UPSTREAM).unwrap();
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            counter.fetch_add(1, Ordering::SeqCst);
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let query = request.queries[0].clone();
            let mut answer = Message::response(request.metadata.id, OpCode::Query);
            answer.add_query(query.clone());
            if query.name.to_lowercase() == name("www.example.com.") {
                if query.query_type == RecordType::A {
                    answer.add_answer(Record::from_rdata(query.name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 53)))));
                }
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let soa = SOA::new(name("ns.example."), name("host.example."), 1, 2, 3, 4, 20);
                answer.add_authority(Record::from_rdata(name("example."), 20, RData::SOA(soa)));
            }
            let _ = socket.send_to(&answer.to_vec().unwrap(), client);
        }
    });
    Upstream { address, asked }
}

/// Sockets on the same free port by UDP and TCP.
pub fn free_port() -> (SocketAddr, (UdpSocket, TcpListener)) {
    let attempt = |_| {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Some((address, listen::open(address).ok()?))
    };
    (0..100).find_map(attempt).unwrap()
}

/// The daemon as a process.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it; it tells its readiness to the socket `notify` beside its configuration.
pub fn start(config: &Path) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_garboard-dns"));
    command.env("NOTIFY_SOCKET", config.with_file_name("notify"));
    Daemon(command.arg("--config").arg(config).stdin(Stdio::null()).spawn().unwrap())
}

#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
