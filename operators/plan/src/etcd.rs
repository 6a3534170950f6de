//! How the members of the cluster's store come and go: one change at a time, each learner before it counts, and the last one never.
//!
//! etcd itself refuses a change that would cost it its majority. What is refused, and why, is told and tried again.

pub mod upkeep;

use std::collections::BTreeMap;

use garboard_api::EtcdRole;
use garboard_api::condition::{self, Observation};

/// A member, as etcd has it.
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

/// A member, as it is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Where the others are to reach it.
    pub peer_url: String,
    /// Whether it is to leave.
    pub leave: bool,
    /// Whether it has left before.
    pub left: bool,
    /// Whether its machine has the data of a member.
    pub joined: bool,
    /// How etcd named it last.
    pub id: Option<u64>,
}

impl Declared {
    /// Whether it was a member of a store that is not this one any more: of the store before a restore. Its data would be taken for this
    /// store's, so it does not come back by itself.
    fn is_lost(&self, members: &[Member]) -> bool {
        self.joined && !members.iter().any(|member| is(member, self) || Some(member.id) == self.id)
    }
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take a new member in, as a learner.
    Add {
        /// Where it will be reached.
        peer_url: String,
    },
    /// Let a learner count. etcd refuses while it has not caught up.
    Promote {
        /// Which.
        id: u64,
    },
    /// Reach a member elsewhere.
    Update {
        /// Which.
        id: u64,
        /// Where.
        peer_url: String,
    },
    /// Take a member out.
    Remove {
        /// Which.
        id: u64,
    },
}

/// What is so of a declared member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How etcd names it; none while it is no member.
    pub id: Option<u64>,
    /// What it may do; none while it has never been a member.
    pub role: Option<EtcdRole>,
    /// The members that there were when it was found, by name, where they are reached.
    pub initial_cluster: BTreeMap<String, String>,
    /// Whether it has joined, in words.
    pub condition: Observation,
}

/// The next change, and the name of the declared member that it is for.
pub fn next(declared: &[Declared], members: &[Member]) -> Option<(String, Step)> {
    let voters = members.iter().filter(|member| !member.learner).count();
    let found = |declared: &Declared| members.iter().find(|member| is(member, declared));
    let of = |declared: &Declared, step| Some((declared.name.clone(), step));
    // What is to leave goes first: a learner that never comes must not stand in the way of others.
    let leaving = declared.iter().filter(|declared| declared.leave).find_map(|declared| {
        let member = found(declared)?;
        (member.learner || voters > 1).then(|| (declared.name.clone(), Step::Remove { id: member.id }))
    });
    if leaving.is_some() {
        return leaving;
    }
    let staying = || declared.iter().filter(|declared| !declared.leave && !declared.left && !declared.is_lost(members));
    if let Some(learner) = members.iter().find(|member| member.learner) {
        let declared = staying().find(|declared| is(learner, declared))?;
        return of(declared, Step::Promote { id: learner.id });
    }
    let moved = staying().find_map(|declared| {
        let member = found(declared).filter(|member| member.peer_urls != [declared.peer_url.as_str()])?;
        of(declared, Step::Update { id: member.id, peer_url: declared.peer_url.clone() })
    });
    moved.or_else(|| {
        let new = staying().find(|declared| found(declared).is_none())?;
        of(new, Step::Add { peer_url: new.peer_url.clone() })
    })
}

/// What is so of a declared member, given why the latest change that is due has failed, and for whom.
pub fn standing(declared: &Declared, members: &[Member], failed: Option<(&str, &str)>) -> Standing {
    let member = members.iter().find(|member| is(member, declared));
    let lost = declared.is_lost(members);
    let role = match member {
        Some(member) if member.learner => Some(EtcdRole::Learner),
        Some(_) => Some(EtcdRole::Voter),
        None => (declared.leave || declared.left || lost).then_some(EtcdRole::Left),
    };
    let failed = failed.filter(|(name, _)| *name == declared.name).map(|(_, why)| why);
    let voters = members.iter().filter(|member| !member.learner).count();
    let (holds, reason, message) = match (role, declared.leave, failed) {
        (Some(EtcdRole::Voter), true, _) if voters == 1 => {
            (true, "Last", "it is the last member, which does not leave".to_owned())
        }
        (Some(EtcdRole::Learner | EtcdRole::Voter), true, why) => {
            (true, "Leaving", format!("it is being taken out{}", because(why)))
        }
        (Some(EtcdRole::Voter), false, None) => (true, "Votes", "it counts for the majority".to_owned()),
        (Some(EtcdRole::Voter), false, Some(why)) => {
            (true, "Votes", format!("it counts, and cannot be reached elsewhere: {why}"))
        }
        (Some(EtcdRole::Learner), false, why) => {
            (false, "Learns", format!("it receives what the others have{}", because(why)))
        }
        (Some(EtcdRole::Left), false, _) if lost => (
            false,
            "NotRestored",
            "the store was made anew without it: delete its Machine, and let it join again with a new token".to_owned(),
        ),
        (Some(EtcdRole::Left), ..) => (false, "Left", "it has been taken out".to_owned()),
        (None, _, Some(why)) => (false, "Waiting", format!("it cannot be taken in yet: {why}")),
        (None, _, None) => (false, "Waiting", "others join before it: one at a time".to_owned()),
    };
    let reached = members.iter().filter_map(|member| {
        let name = if is(member, declared) { &declared.name } else { &member.name };
        Some((name.clone(), member.peer_urls.first()?.clone())).filter(|(name, _)| !name.is_empty())
    });
    Standing {
        id: member.map(|member| member.id),
        role,
        initial_cluster: if member.is_some() { reached.collect() } else { BTreeMap::new() },
        condition: Observation::new(condition::JOINED, holds, reason, message),
    }
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// Whether a member is the declared one. It has its name from its first start on.
fn is(member: &Member, declared: &Declared) -> bool {
    match member.name.as_str() {
        "" => member.peer_urls.contains(&declared.peer_url),
        name => name == declared.name,
    }
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
mod tests;
