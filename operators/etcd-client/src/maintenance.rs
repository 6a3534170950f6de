//! How a member is, and its upkeep.

use std::time::Duration;

use crate::proto::{AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, StatusRequest};
use crate::{Client, EtcdError, limited, within};

/// Longest time for work on a whole database: minutes for one of eight gigabytes on a slow disk.
const WORK: Duration = Duration::from_secs(600);
/// Takes an alarm back (etcd: `AlarmRequest.DEACTIVATE`).
const DEACTIVATE: i32 = 2;

/// How a member is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// How etcd names it.
    pub id: u64,
    /// Who leads, as far as it knows; 0 while nobody does.
    pub leader_id: u64,
    /// Its version.
    pub version: String,
    /// Size of its database, bytes.
    pub database_bytes: i64,
    /// What of that is in use, bytes.
    pub used_bytes: i64,
    /// The size at which it takes no more, bytes.
    pub quota_bytes: i64,
    /// How far the store is.
    pub revision: i64,
    /// The alarms about it, such as NOSPACE.
    pub alarms: Vec<&'static str>,
    /// What is wrong with it, in its own words.
    pub errors: Vec<String>,
}

impl Health {
    /// Whether it leads the others.
    pub fn leads(&self) -> bool {
        self.id != 0 && self.leader_id == self.id
    }
}

impl Client {
    /// How the member is that answers: also without a majority.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn health(&mut self) -> Result<Health, EtcdError> {
        let status = self.maintenance.status(limited(StatusRequest {})).await?.into_inner();
        let alarms = self.maintenance.alarm(limited(AlarmRequest::default())).await?.into_inner().alarms;
        let header = status.header.unwrap_or_default();
        let alarms = alarms.iter().filter(|alarm| alarm.member_id == header.member_id);
        let alarms = alarms.filter(|alarm| alarm.alarm() != AlarmType::None);
        Ok(Health {
            id: header.member_id,
            leader_id: status.leader,
            version: status.version,
            database_bytes: status.db_size,
            used_bytes: status.db_size_in_use,
            quota_bytes: status.db_size_quota,
            revision: header.revision,
            alarms: alarms.map(|alarm| alarm.alarm().as_str_name()).collect(),
            errors: status.errors,
        })
    }

    /// Gives the space back that the member's database does not use. The member does nothing else meanwhile.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn defragment(&mut self) -> Result<(), EtcdError> {
        self.maintenance.defragment(within(DefragmentRequest {}, WORK)).await?;
        Ok(())
    }

    /// Forgets what was before `revision`, in all members.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] when that is forgotten already, or is yet to come.
    pub async fn compact(&mut self, revision: i64) -> Result<(), EtcdError> {
        self.store.compact(within(CompactionRequest { revision, physical: true }, WORK)).await?;
        Ok(())
    }

    /// Takes the alarm back that a member is out of space; the store takes writes again when no member has it.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn disarm(&mut self, id: u64) -> Result<(), EtcdError> {
        let request = AlarmRequest { action: DEACTIVATE, member_id: id, alarm: AlarmType::Nospace.into() };
        self.maintenance.alarm(limited(request)).await?;
        Ok(())
    }
}
