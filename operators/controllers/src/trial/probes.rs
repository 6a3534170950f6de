//! What a machine can do, as far as a change of its configuration can take it away.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use garboard_api::machine::{MachineTrial, TcpServer, TrialProbe};
use garboard_catalog::{Peer, kubelet};
use garboard_plan::machine::summary;
use garboard_plan::trial::{Seen, TIME_SERVERS, service_probe};
use garboard_runtime::applier::chain;
use garboard_runtime::status::in_time;
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::ServiceStatus;
use garboard_sys::netlink::{Netlink, NetlinkError};
use kube::Client;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::network::NodeAddresses;
use crate::time::TimeView;

/// Port that hardly anything listens on (`discard`): a machine that is there refuses the connection.
const DISCARD: u16 = 9;
/// A neighbour that does not answer is unreachable after three seconds (`neigh/default/mcast_solicit`), or later on a machine that is busy.
/// One that answered and drops the connection is there.
const NEIGHBOUR: Duration = Duration::from_secs(5);
/// A server has this long.
const ANSWER: Duration = Duration::from_secs(3);
/// Of many other nodes so many are asked: one is enough to tell that they can be reached.
const PEERS: usize = 5;
/// Port of DNS.
const DNS: u16 = 53;
/// The question for the root's name servers (RFC 1035): number, flags, one question; the root, NS, IN.
const QUESTION: [u8; 17] = [0x67, 0x61, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
/// The bit of an answer's flags that makes it one.
const IS_ANSWER: u8 = 0x80;

/// What is looked at.
#[derive(Clone)]
pub struct Probes {
    /// What the network has reached.
    pub network: watch::Receiver<NodeAddresses>,
    /// The API server, once it answers.
    pub api: watch::Receiver<Option<Client>>,
    /// The services that should run.
    pub specs: watch::Receiver<Arc<Vec<ServiceSpec>>>,
    /// What the services are.
    pub services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    /// The other nodes.
    pub peers: watch::Receiver<Arc<Vec<Peer>>>,
    /// What the machine has of its time servers.
    pub time: watch::Receiver<TimeView>,
}

impl Probes {
    /// Asks everything at once. What is not there to be asked has no result.
    pub async fn ask(&self, declared: &MachineTrial) -> Seen {
        let (network, client) = (self.network.borrow().clone(), self.api.borrow().clone());
        let others: Vec<_> = self.peers.borrow().iter().take(PEERS).map(|peer| peer.address).collect();
        let user: FuturesUnordered<_> = declared.probes.iter().map(connect).collect();
        let (gateway, resolver, api, peers, user) = tokio::join!(
            gateway(),
            any(network.nameservers.iter().map(|server| question(*server))),
            api(client),
            any(others.into_iter().map(peer)),
            user.collect::<Vec<_>>(),
        );
        let named = [
            ("default gateway", gateway),
            ("name server", resolver),
            ("API server", api),
            ("other nodes", peers),
            (TIME_SERVERS, time_servers(&self.time.borrow())),
        ];
        let named = named.into_iter().filter_map(|(name, result)| Some((name.to_owned(), result?)));
        named.chain(user).chain(self.services()).collect()
    }

    /// What the services that do not serve said last, for those who look for the reason later.
    pub fn log(&self) -> Vec<String> {
        let services = self.services.borrow();
        let lacking = services.iter().filter(|status| !status.ready);
        lacking
            .flat_map(|status| status.last_lines.iter().map(move |line| format!("{}: {line}", status.name)))
            .collect()
    }

    fn services(&self) -> Vec<(String, Result<(), String>)> {
        let services = self.services.borrow();
        let result = |spec: &ServiceSpec| match services.iter().find(|status| status.name == spec.name) {
            Some(status) if status.ready => Ok(()),
            Some(status) => Err(summary(status).message.unwrap_or_else(|| "not ready".to_owned())),
            None => Err("not started".to_owned()),
        };
        self.specs.borrow().iter().map(|spec| (service_probe(spec.name.as_str()), result(spec))).collect()
    }
}

/// Whether the next hop of the default route is there; none without a default route.
async fn gateway() -> Option<Result<(), String>> {
    let (index, address) = match default_gateway().await {
        Ok(found) => found?,
        Err(error) => return Some(Err(chain(&error))),
    };
    let unreachable =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable);
    Some(match timeout(NEIGHBOUR, TcpStream::connect((address, DISCARD))).await {
        Ok(Err(error)) if unreachable(&error) => Err(format!("{address}: {error}")),
        Ok(_) => Ok(()),
        Err(_) => match is_missed(index, address).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(format!("{address}: it does not answer")),
            Err(error) => Err(chain(&error)),
        },
    })
}

async fn is_missed(index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
    Netlink::open()?.is_missed(index, address).await
}

/// The link of the default route, and its next hop.
async fn default_gateway() -> Result<Option<(u32, IpAddr)>, NetlinkError> {
    let routes = Netlink::open()?.routes().await?;
    let default = routes.into_iter().filter(|route| route.destination.prefix_len() == 0);
    let gateways = default.filter_map(|route| Some((route.metric, route.index, route.gateway?)));
    Ok(gateways.min().map(|(_, index, gateway)| (index, gateway)))
}

/// Whether any of those who are asked answers; none when there is nobody to ask.
async fn any(asked: impl Iterator<Item = impl Future<Output = Result<(), String>>>) -> Option<Result<(), String>> {
    let mut answers: FuturesUnordered<_> = asked.collect();
    let mut problem = None;
    while let Some(result) = answers.next().await {
        match result {
            Ok(()) => return Some(Ok(())),
            Err(error) => problem = Some(Err(error)),
        }
    }
    problem
}

/// Whether another node is there: its kubelet takes connections, or the machine says that it does not run.
async fn peer(address: IpAddr) -> Result<(), String> {
    let connected = async {
        match TcpStream::connect((address, kubelet::PORT)).await {
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
            _ => Ok(()),
        }
    };
    within(&address.to_string(), connected).await
}

/// Whether the clock follows one of the time servers, which are asked all the time; none when there are none.
fn time_servers(TimeView { servers, state }: &TimeView) -> Option<Result<(), String>> {
    if servers.is_empty() {
        return None;
    }
    let told = garboard_plan::time::condition(servers, state);
    Some(if told.holds == Some(true) { Ok(()) } else { Err(told.message) })
}

async fn question(server: IpAddr) -> Result<(), String> {
    let any = match server {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let asked = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect((server, DNS)).await?;
        socket.send(&QUESTION).await?;
        let mut answer = [0; 512];
        loop {
            let length = socket.recv(&mut answer).await?;
            if answer[..length].starts_with(&QUESTION[..2]) && answer[2] & IS_ANSWER != 0 {
                return Ok::<_, io::Error>(());
            }
        }
    };
    within(&server.to_string(), asked).await
}

/// Whether the API server answers; none before it has answered for the first time.
async fn api(client: Option<Client>) -> Option<Result<(), String>> {
    let client = client?;
    let answer = in_time(async move { client.apiserver_version().await }).await;
    Some(match answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(chain(&error)),
        Err(silence) => Err(silence.to_string()),
    })
}

async fn connect(TrialProbe { name, tcp: TcpServer { host, port } }: &TrialProbe) -> (String, Result<(), String>) {
    let connected = async { TcpStream::connect((host.as_str(), *port)).await.map(drop) };
    (format!("probe {name}"), within(&format!("{host}:{port}"), connected).await)
}

async fn within(whom: &str, asked: impl Future<Output = io::Result<()>>) -> Result<(), String> {
    match timeout(ANSWER, asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{whom}: {error}")),
        Err(_) => Err(format!("{whom}: no answer within {} seconds", ANSWER.as_secs())),
    }
}

#[cfg(test)]
#[path = "probes_tests.rs"]
mod tests;
