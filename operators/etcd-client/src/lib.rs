//! A client of the machine's own member of etcd, by its socket: who the members are, changes of that, how the member is, and its upkeep.
//!
//! The protocol is etcd's own, cut to what is used. The crate that has all of it compiles it with a program of the host.

#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

mod maintenance;
mod snapshot;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use proto::cluster_client::ClusterClient;
use proto::kv_client::KvClient;
use proto::maintenance_client::MaintenanceClient;
use proto::{MemberAddRequest, MemberListRequest, MemberRequest, MemberUpdateRequest};

pub use maintenance::Health;
pub use snapshot::Snapshot;

/// Longest time for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// It was not reached.
    #[error("etcd is not reached")]
    Connect(#[from] tonic::transport::Error),
    /// It refused, or did not answer in time.
    #[error("etcd: {}", .0.message().trim_start_matches("etcdserver: "))]
    Refused(Box<Status>),
}

impl From<Status> for EtcdError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// How etcd names it.
    pub id: u64,
    /// Its name; empty until it has been started.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// Whether it receives everything and does not count yet.
    pub learner: bool,
}

/// A connection to a member.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    store: KvClient<Channel>,
}

impl Client {
    /// Connects to the member that listens at `url`, such as `unix:///run/etcd.sock`.
    ///
    /// # Errors
    /// [`EtcdError::Connect`].
    pub async fn connect(url: &str) -> Result<Self, EtcdError> {
        // How long an answer may take is said with each request: some work for minutes.
        let channel = Endpoint::from_shared(url.to_owned())?.connect_timeout(LIMIT).connect().await?;
        let store = KvClient::new(channel.clone());
        Ok(Self { cluster: ClusterClient::new(channel.clone()), maintenance: MaintenanceClient::new(channel), store })
    }

    /// The members, as a majority agrees on them.
    ///
    /// # Errors
    /// [`EtcdError`]; so also without a majority.
    pub async fn members(&mut self) -> Result<Vec<Member>, EtcdError> {
        self.list(true).await
    }

    /// The members, as this one knows them: also without a majority.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn known_members(&mut self) -> Result<Vec<Member>, EtcdError> {
        self.list(false).await
    }

    async fn list(&mut self, linearizable: bool) -> Result<Vec<Member>, EtcdError> {
        let answer = self.cluster.member_list(limited(MemberListRequest { linearizable })).await?;
        let member =
            |proto::Member { id, name, peer_urls, is_learner }| Member { id, name, peer_urls, learner: is_learner };
        Ok(answer.into_inner().members.into_iter().map(member).collect())
    }

    /// Takes a new member in, which is reached at `peer_url`: as a learner, which does not count.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] while another learns, or when members are away.
    pub async fn add_learner(&mut self, peer_url: &str) -> Result<(), EtcdError> {
        let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()], is_learner: true };
        self.cluster.member_add(limited(request)).await?;
        Ok(())
    }

    /// Lets a learner count.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] while it has not caught up.
    pub async fn promote(&mut self, id: u64) -> Result<(), EtcdError> {
        self.cluster.member_promote(limited(MemberRequest { id })).await?;
        Ok(())
    }

    /// Reaches a member elsewhere.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn update(&mut self, id: u64, peer_url: &str) -> Result<(), EtcdError> {
        let request = MemberUpdateRequest { id, peer_urls: vec![peer_url.to_owned()] };
        self.cluster.member_update(limited(request)).await?;
        Ok(())
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] when the others would be no majority.
    pub async fn remove(&mut self, id: u64) -> Result<(), EtcdError> {
        self.cluster.member_remove(limited(MemberRequest { id })).await?;
        Ok(())
    }
}

/// A request that etcd need not work on any more when nobody waits for the answer.
///
/// The limit is set on both sides: a server that is stuck keeps none.
fn limited<T>(message: T) -> Request<T> {
    within(message, LIMIT)
}

fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
