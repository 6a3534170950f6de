//! The machine's own member of etcd, reached by its socket.

use garboard_catalog::etcd::local_url;
use garboard_etcd_client::{Client, EtcdError};
use garboard_plan::etcd::{Member, Step};

/// A connection to it.
pub(crate) async fn connect() -> Result<Client, EtcdError> {
    Client::connect(&local_url()).await
}

/// The members of the store.
pub(super) async fn members(etcd: &mut Client) -> Result<Vec<Member>, EtcdError> {
    let members = etcd.members().await?;
    let member =
        |garboard_etcd_client::Member { id, name, peer_urls, learner }| Member { id, name, peer_urls, learner };
    Ok(members.into_iter().map(member).collect())
}

/// Carries out a change of the membership.
pub(super) async fn apply(etcd: &mut Client, step: &Step) -> Result<(), EtcdError> {
    match step {
        Step::Add { peer_url } => etcd.add_learner(peer_url).await,
        Step::Promote { id } => etcd.promote(*id).await,
        Step::Update { id, peer_url } => etcd.update(*id, peer_url).await,
        Step::Remove { id } => etcd.remove(*id).await,
    }
}
