//! Gives back what the database of the machine's member does not use, and takes its alarm back when it has space again.

use garboard_etcd_client::{Client, EtcdError, Health};
use garboard_plan::etcd::upkeep;
use k8s_openapi::jiff::Timestamp;
use tracing::{info, warn};

/// The alarm that a database has reached the size at which it takes no more (etcd: `AlarmType`).
pub(crate) const NOSPACE: &str = "NOSPACE";

/// Defragments the database, and takes the alarm back if it is below its limit then. Returns how it was before and is now.
///
/// While there is an alarm the API server cannot forget old revisions, which takes a write, so they are forgotten here: it is told to list
/// everything again.
pub(crate) async fn defragment(etcd: &mut Client) -> Result<(Health, Health), EtcdError> {
    let before = etcd.health().await?;
    let full = before.alarms.contains(&NOSPACE);
    if full && let Err(error) = etcd.compact(before.revision).await {
        // They are forgotten already, or nobody leads: what is free is given back in any case.
        info!(%error, "old revisions are not forgotten");
    }
    etcd.defragment().await?;
    let mut after = etcd.health().await?;
    let (was, is) = (before.database_bytes, after.database_bytes);
    info!(before_bytes = was, after_bytes = is, "etcd's database is defragmented");
    if full {
        if upkeep::may_disarm(after.database_bytes, after.quota_bytes) {
            etcd.disarm(after.id).await?;
            info!("etcd has space again, and its alarm is taken back");
            after = etcd.health().await?;
        } else {
            warn!(bytes = is, quota_bytes = after.quota_bytes, "etcd has no space again, and its alarm stays");
        }
    }
    Ok((before, after))
}

/// What a person has to know about a member that takes no more.
pub(super) fn no_space(health: &Health) -> Option<String> {
    health.alarms.contains(&NOSPACE).then(|| {
        let gibibytes = |bytes: i64| bytes as f64 / (1u64 << 30) as f64;
        format!(
            "alarm {NOSPACE}: the database has {:.1} GiB of at most {:.1}, and the cluster takes no changes but deletions: delete objects \
             that are not needed, then `garboardctl etcd defragment` gives their space back and takes the alarm back",
            gibibytes(health.database_bytes),
            gibibytes(health.quota_bytes),
        )
    })
}

/// Makes space in the machine's member while the store takes no changes, when it is its turn. Returns how it is then.
pub(super) async fn make_space(etcd: &mut Client, health: Health) -> Result<Health, EtcdError> {
    if !health.alarms.contains(&NOSPACE) {
        return Ok(health);
    }
    let members: Vec<_> = etcd.known_members().await?.iter().map(|member| member.id).collect();
    if !upkeep::has_turn(&members, health.id, Timestamp::now().as_second()) {
        return Ok(health);
    }
    defragment(etcd).await.map(|(_, after)| after)
}
