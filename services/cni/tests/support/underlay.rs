//! Machines on one network: each a network namespace with a daemon of its own, on a bridge in one more.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

use garboard_cni::attachment::mac_of;
use garboard_sys::netlink::{BridgePort, VethPair};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt};
use serde_json::{Value, json};

use super::{LIMIT, Machine, Netns, PATIENCE, address, index, wait_for};

/// The assigned port.
pub const PORT: u16 = 4789;

/// A network that machines are on.
pub struct Underlay(pub Netns);

impl Underlay {
    pub fn new() -> Self {
        let netns = Netns::new();
        netns.netlink(async |netlink| {
            netlink.add_bridge("lan0", mac_of([192, 0, 2, 254].into()), 1500).await.unwrap();
            let bridge = index(netlink, "lan0").await;
            netlink.set_up(bridge).await.unwrap();
        });
        Self(netns)
    }

    /// Gives a namespace an interface on it with these addresses.
    pub fn connect(&self, netns: &Netns, interface: &str, mac: [u8; 4], addresses: &[String]) {
        self.0.netlink(async |netlink| {
            let bridge = index(netlink, "lan0").await;
            let name = format!("lan-{}-{}", mac[2], mac[3]);
            let pair = VethPair {
                name: &name,
                alias: "a machine",
                bridge,
                port: BridgePort { hairpin: false, isolated: false },
                peer: interface,
                peer_mac: mac_of(mac.into()),
                peer_namespace: netns.fd().as_fd(),
                mtu: 1500,
            };
            netlink.add_veth(&pair).await.unwrap();
        });
        netns.netlink(async |netlink| {
            let interface = index(netlink, interface).await;
            netlink.set_up(interface).await.unwrap();
            for text in addresses {
                netlink.add_address(&address(interface, text)).await.unwrap();
            }
        });
    }

    /// A machine without daemon: 192.0.2.`number`.
    pub fn stranger(&self, number: u8) -> Netns {
        let netns = Netns::new();
        self.connect(&netns, "eth0", [192, 0, 2, number], &[format!("192.0.2.{number}/24")]);
        netns
    }

    /// Machine `number` and its peers: 192.0.2.`number` with pods in 10.244.`number`.0/24.
    pub fn machine(&self, number: u8, config: &Value) -> Machine {
        let mut machine = Machine::prepare();
        self.connect(&machine.netns, "eth0", [192, 0, 2, number], &[format!("192.0.2.{number}/24")]);
        machine.configure(config);
        machine.run_daemon();
        machine.wait_ready();
        machine
    }

    /// Starts to count what goes over it.
    pub fn tap(&self) -> Tap {
        self.0.run(|| {
            let fd = socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let fd = fd.unwrap();
            socket::setsockopt(&fd, sockopt::RcvBuf, &(8 << 20)).unwrap();
            Tap(fd)
        })
    }
}

pub fn peer(number: u8) -> Value {
    json!({"name": format!("node-{number}"), "address": format!("192.0.2.{number}"),
           "podCIDRs": [format!("10.244.{number}.0/24")]})
}

/// The configuration of machine `number`.
pub fn tunnels(number: u8, peers: &[u8]) -> Value {
    json!({
        "podCIDRs": [format!("10.244.{number}.0/24")], "clusterCIDRs": ["10.244.0.0/16"], "backend": "vxlan",
        "vxlan": {"address": format!("192.0.2.{number}")},
        "peers": peers.iter().map(|number| peer(*number)).collect::<Vec<_>>(),
    })
}

pub fn direct(number: u8, peers: &[u8]) -> Value {
    let mut config = tunnels(number, peers);
    config["vxlan"]["directRoutes"] = json!(true);
    config
}

/// Sees each frame that comes to the network's bridge.
pub struct Tap(OwnedFd);

/// What was seen since the last time: IPv4 packets, whole frames without the hardware addresses.
#[derive(Debug, Default)]
pub struct Seen {
    /// Encapsulated packets.
    pub encapsulated: usize,
    /// Fragments.
    pub fragments: usize,
    /// The longest packet, bytes.
    pub longest: usize,
    /// Encapsulated TCP packets over IPv4 whose own checksum is not computed yet.
    pub unfinished: usize,
}

impl Tap {
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        let mut frame = vec![0; 70_000];
        loop {
            let length = match socket::recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::ENOBUFS) => continue,
                Err(_) => return seen,
            };
            let packet = match &frame[..length] {
                [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, packet @ ..] if packet.len() >= 28 => packet,
                _ => continue,
            };
            seen.longest = seen.longest.max(packet.len());
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
            seen.fragments += usize::from(fragment != 0);
            let encapsulated = packet[9] == 17 && packet[22..24] == PORT.to_be_bytes();
            seen.encapsulated += usize::from(encapsulated);
            // Behind IP, UDP, VXLAN and Ethernet.
            seen.unfinished +=
                usize::from(encapsulated && !is_finished(packet.get(20 + 8 + 8 + 14..).unwrap_or_default()));
        }
    }
}

/// Whether a packet is another one than TCP over IPv4 whose checksum is wrong.
fn is_finished(packet: &[u8]) -> bool {
    if packet.len() < 40 || packet[0] != 0x45 || packet[9] != 6 {
        return true;
    }
    let tcp = &packet[20..usize::from(u16::from_be_bytes([packet[2], packet[3]])).min(packet.len())];
    let words = packet[12..20].chunks(2).chain(tcp.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let sum = sum + 6 + tcp.len() as u32;
    sum.is_multiple_of(0xffff)
}

impl Netns {
    /// Runs a program inside and returns what it prints.
    #[track_caller]
    pub fn command(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let output = self.run(|| Command::new(words.next().unwrap()).args(words).output().unwrap());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a program prints something with (or without) a text.
    #[track_caller]
    pub fn wait_until(&self, line: &str, prints: bool, text: &str) {
        wait_for(&format!("{line:?} to print {text:?}: {prints}"), || self.command(line).contains(text) == prints);
    }

    /// A TCP server that sends back what it gets.
    pub fn tcp_echo(&self, address: &str) {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut from = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut from, &mut stream);
                });
            }
        });
    }

    pub fn tcp_connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run(|| TcpStream::connect_timeout(&to, LIMIT).unwrap());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends much to an echo server and says whether it came back as it was.
    pub fn transfers(&self, to: &str, bytes: usize) -> bool {
        let stream = self.tcp_connect(to);
        let sent: Vec<u8> = (0..bytes).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
        let mut received = vec![0; bytes];
        thread::scope(|scope| {
            let (mut writer, mut reader) = (stream.try_clone().unwrap(), &stream);
            let (sent, received) = (&sent, &mut received);
            scope.spawn(move || writer.write_all(sent).unwrap());
            reader.read_exact(received).is_ok()
        }) && sent == received
    }

    /// A UDP server that sends back what it gets, however long.
    pub fn udp_echo(&self, address: &str) {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], peer);
            }
        });
    }

    /// Whether an echo of that length comes back.
    pub fn udp_transfers(&self, to: &str, bytes: usize) -> bool {
        let socket = self.udp_client(to);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 65_536];
        socket.send(&vec![7; bytes]).is_ok() && socket.recv(&mut buffer).is_ok_and(|length| length == bytes)
    }
}

/// A UDP packet to a pod as a tunnel carries it.
pub fn encapsulate(vni: u8, to: [u8; 6], source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x30, 0x39];
    udp.extend(port.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    // No checksum.
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let ethernet = [&to[..], &[2, 0, 0, 0, 0, 99], &[8, 0]].concat();
    [&[8, 0, 0, 0, 0, 0, vni, 0], &ethernet[..], &ip, &udp].concat()
}

/// Sends a datagram from a namespace, whose address its routes choose.
pub fn send(from: &Netns, to: IpAddr, datagram: &[u8]) {
    from.run(|| {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        // Refusals of earlier datagrams do not matter.
        let _ = socket.send_to(datagram, (to, PORT));
    });
}
