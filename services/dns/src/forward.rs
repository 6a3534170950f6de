//! Names outside of the cluster: asked of upstream servers, with a bounded cache.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use ipnet::IpNet;
use tokio::sync::Semaphore;
use tracing::warn;

/// Answers that are kept; one takes about a kilobyte.
const CACHE_ENTRIES: u64 = 1024;
/// Questions under way at once; more are refused at once instead of piling up behind servers that do not answer.
const MAX_QUESTIONS: usize = 512;
/// Clients give up after five seconds: two tries must fit.
const TIMEOUT: Duration = Duration::from_millis(2200);
const ATTEMPTS: usize = 1;
/// The longest that answers are kept, whatever they say.
const POSITIVE_MAX: Duration = Duration::from_secs(3600);
const NEGATIVE_MAX: Duration = Duration::from_secs(30);
/// The port of name servers in resolv.conf(5).
const PORT: u16 = 53;
/// resolv.conf(5) heeds three; a longer list is a mistake.
const MAX_SERVERS: usize = 3;

/// What the upstream servers said.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The response code.
    pub code: ResponseCode,
    /// The answer.
    pub answers: Vec<Record>,
    /// The SOA record of a negative answer.
    pub authority: Vec<Record>,
}

impl Reply {
    fn failure(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: Vec::new() }
    }
}

/// A set of upstream servers.
#[derive(Debug)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    /// `None` when there is no server to ask.
    resolver: Option<TokioResolver>,
    slots: Semaphore,
}

impl Forwarder {
    /// Asks these servers in this order. Those that would lead back here are left out: this server's own addresses, and
    /// the cluster's Services, one of which is this server.
    pub fn new(servers: &[SocketAddr], own: &[SocketAddr], services: &[IpNet]) -> Self {
        let leads_back =
            |server: &SocketAddr| own.contains(server) || services.iter().any(|net| net.contains(&server.ip()));
        let (loops, servers): (Vec<SocketAddr>, Vec<SocketAddr>) =
            servers.iter().partition(|server| leads_back(server));
        for server in loops {
            warn!(%server, "upstream server left out: it leads back here");
        }
        let resolver = (!servers.is_empty()).then(|| resolver(&servers));
        let resolver = resolver.and_then(|built| built.inspect_err(|error| warn!(%error, "no resolver")).ok());
        Self { servers, resolver, slots: Semaphore::new(MAX_QUESTIONS) }
    }

    /// The servers.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Whether a client is one of the servers that are asked: it asks us what we would ask it.
    pub fn is_upstream(&self, client: IpAddr) -> bool {
        self.servers.iter().any(|server| server.ip() == client)
    }

    /// Asks. Fails with SERVFAIL when there is nobody to ask, nobody answers, or too much is being asked.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Reply {
        let (Some(resolver), Ok(_slot)) = (&self.resolver, self.slots.try_acquire()) else {
            return Reply::failure(ResponseCode::ServFail);
        };
        match resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                Reply { code: ResponseCode::NoError, answers: lookup.answers().to_vec(), authority: Vec::new() }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Reply {
                code: none.response_code,
                answers: Vec::new(),
                authority: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Reply::failure(code),
            Err(_) => Reply::failure(ResponseCode::ServFail),
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let servers = servers.iter().map(|server| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = server.port();
            connection
        });
        NameServerConfig::new(server.ip(), true, connections.to_vec())
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut options = ResolverOpts::default();
    options.cache_size = CACHE_ENTRIES;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    options.positive_max_ttl = Some(POSITIVE_MAX);
    options.negative_max_ttl = Some(NEGATIVE_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.num_concurrent_reqs = 1;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// The name servers of a resolv.conf(5) file; none when there is no file yet.
pub fn read_resolv_conf(path: &Path) -> Vec<SocketAddr> {
    parse_resolv_conf(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    servers.take(MAX_SERVERS).map(|server| SocketAddr::new(server, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_the_rest_is_not_minded() {
        let text =
            "# comment\nsearch a b\nnameserver 10.0.2.3\nnameserver\tfd00::3 # second\nnameserver x\noptions y\n";
        let servers: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.2.3:53", "[fd00::3]:53"]);
    }

    #[tokio::test]
    async fn servers_that_lead_back_are_left_out() {
        let all = ["10.244.0.1:53", "10.96.0.10:53", "10.0.2.3:53"].map(|server| server.parse().unwrap());
        let forwarder = Forwarder::new(&all, &all[..1], &["10.96.0.0/12".parse().unwrap()]);
        assert_eq!(forwarder.servers(), &all[2..]);
        assert!(forwarder.is_upstream([10, 0, 2, 3].into()));
    }

    #[tokio::test]
    async fn nobody_to_ask_is_a_failure() {
        let reply = Forwarder::new(&[], &[], &[]).ask(&Name::root(), RecordType::NS).await;
        assert_eq!(reply, Reply::failure(ResponseCode::ServFail));
    }
}
