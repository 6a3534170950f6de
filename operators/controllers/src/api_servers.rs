//! Follows the addresses of the cluster's API servers, which they keep in the EndpointSlice of their own Service.
//!
//! What they were last outlasts an outage in the ledger. A machine that joins and knows none yet begins with those of its declaration.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use garboard_api::Machine;
use garboard_api::machine::MachineJoin;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_runtime::ledger::Ledger;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::served::{first, whenever_served};

/// Name of the ledger's file.
const FILE: &str = "api-servers";
/// The Service of the API servers, and the slice that they keep.
const SERVICE: &str = "kubernetes";
const NAMESPACE: &str = "default";
/// First and longest wait after a name was not resolved.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The task that follows them.
pub struct ApiServers {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    ledger: Ledger,
    servers: watch::Sender<Vec<SocketAddr>>,
}

impl std::fmt::Debug for ApiServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServers").finish_non_exhaustive()
    }
}

impl ApiServers {
    /// Prepares the task, and the channel on which it publishes: at first what the ledger has.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        ledger: Ledger,
    ) -> (Self, watch::Receiver<Vec<SocketAddr>>) {
        // What is lost is learned again.
        let recorded = ledger.read(FILE).ok().flatten().unwrap_or_default();
        let (servers, receiver) = watch::channel(recorded);
        (Self { machine, api, ledger, servers }, receiver)
    }

    /// Follows them until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            if self.servers.borrow().is_empty() {
                self.begin().await;
            }
            whenever_served(self.api.clone(), |client| self.follow(client)).await;
        };
        stop.run_until_cancelled(work).await;
    }

    /// Begins with the declared endpoints of the cluster that the machine joins.
    async fn begin(&mut self) {
        let machine = first(&mut self.machine).await;
        let Some(join) = machine.and_then(|machine| machine.spec.join.clone()) else { return };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let found = resolve(&join).await;
            if !found.is_empty() {
                // A beginning is not recorded: it is declared.
                self.servers.send_replace(found);
                return;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn follow(&self, client: Client) {
        let watch = watcher::watch_object(Api::<EndpointSlice>::namespaced(client, NAMESPACE), SERVICE);
        let mut watch = pin!(garboard_api_client::uninterrupted("API servers", watch));
        while let Some(slice) = watch.next().await {
            // None at all is no way to find them again.
            if let Some(found) = slice.map(|slice| addresses(&slice)).filter(|found| !found.is_empty()) {
                self.publish(found);
            }
        }
    }

    fn publish(&self, found: Vec<SocketAddr>) {
        if *self.servers.borrow() == found {
            return;
        }
        info!(servers = ?found, "API servers");
        if let Err(error) = self.ledger.write(FILE, &found) {
            warn!(error = chain(&error), "cannot record the API servers");
        }
        self.servers.send_replace(found);
    }
}

/// The addresses of the declared endpoints; those whose name is not resolved are left out.
async fn resolve(join: &MachineJoin) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for endpoint in &join.endpoints {
        match tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => debug!(%endpoint, %error, "not resolved yet"),
        }
    }
    found
}

/// The addresses in a slice, in their order.
fn addresses(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports = slice.ports.iter().flatten();
    let Some(port) = ports.filter_map(|port| port.port.and_then(|port| u16::try_from(port).ok())).next() else {
        return Vec::new();
    };
    let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    let mut found: Vec<_> = addresses
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, port))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};

    use super::*;

    #[test]
    fn a_slice_tells_where_the_servers_are() {
        let endpoint = |address: &str| Endpoint { addresses: vec![address.to_owned()], ..Endpoint::default() };
        let mut slice = EndpointSlice {
            endpoints: Some(vec![endpoint("192.0.2.12"), endpoint("192.0.2.11"), endpoint("192.0.2.12")]),
            ports: Some(vec![EndpointPort { port: Some(6443), ..EndpointPort::default() }]),
            ..EndpointSlice::default()
        };
        let expected: Vec<SocketAddr> = ["192.0.2.11:6443", "192.0.2.12:6443"].map(|each| each.parse().unwrap()).into();
        assert_eq!(addresses(&slice), expected);
        slice.ports = None;
        assert_eq!(addresses(&slice), []);
    }
}
