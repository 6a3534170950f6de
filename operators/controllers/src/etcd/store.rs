//! The machine's own member of etcd, reached by its socket.

use garboard_catalog::etcd::local_url;
use garboard_etcd_client::{Client, EtcdError, Health};
use garboard_plan::etcd::{Member, Step};

/// The members of the store.
pub(super) async fn members() -> Result<Vec<Member>, EtcdError> {
    let members = Client::connect(&local_url()).await?.members().await?;
    let member =
        |garboard_etcd_client::Member { id, name, peer_urls, learner }| Member { id, name, peer_urls, learner };
    Ok(members.into_iter().map(member).collect())
}

/// Carries out a change of the membership.
pub(super) async fn apply(step: &Step) -> Result<(), EtcdError> {
    let mut client = Client::connect(&local_url()).await?;
    match step {
        Step::Add { peer_url } => client.add_learner(peer_url).await,
        Step::Promote { id } => client.promote(*id).await,
        Step::Update { id, peer_url } => client.update(*id, peer_url).await,
        Step::Remove { id } => client.remove(*id).await,
    }
}

/// How the machine's own member is.
pub(super) async fn health() -> Result<Health, EtcdError> {
    Client::connect(&local_url()).await?.health().await
}
