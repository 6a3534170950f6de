//! `etcd`

mod restore;
mod snapshot;

use garboard_machine_api::proto;
use serde::Serialize;

use crate::cli::EtcdCommand;
use crate::config::Contact;
use crate::output::{Format, show, size, table};

/// What a member is, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    id: String,
    /// None until it has been started.
    name: Option<String>,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    role: &'static str,
    leader: bool,
    /// Whether it is the machine's own.
    own: bool,
}

/// How the machine's member is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    id: String,
    /// None while nobody leads.
    leader: Option<String>,
    version: String,
    database_bytes: i64,
    used_bytes: i64,
    quota_bytes: i64,
    revision: i64,
    alarms: Vec<String>,
    errors: Vec<String>,
}

impl From<proto::EtcdHealth> for Health {
    fn from(health: proto::EtcdHealth) -> Self {
        let proto::EtcdHealth {
            id,
            leader_id,
            version,
            database_bytes,
            used_bytes,
            quota_bytes,
            revision,
            alarms,
            errors,
        } = health;
        let leader = (leader_id != 0).then(|| hexadecimal(leader_id));
        Self { id: hexadecimal(id), leader, version, database_bytes, used_bytes, quota_bytes, revision, alarms, errors }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    machine: String,
    members: Vec<Member>,
    health: Health,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Defragmented {
    machine: String,
    before: Health,
    after: Health,
}

pub async fn run(contact: &Contact, command: &EtcdCommand) -> anyhow::Result<()> {
    match command {
        EtcdCommand::Members(arguments) => members(contact, arguments.output.output).await,
        EtcdCommand::Snapshot(arguments) => snapshot::run(contact, arguments).await,
        EtcdCommand::Restore(arguments) => restore::run(contact, arguments).await,
        EtcdCommand::Defragment(arguments) => defragment(contact, arguments.output.output).await,
    }
}

async fn members(contact: &Contact, format: Format) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let answer = client.etcd_members().await?;
    let answer = known(client.version().machine.clone(), answer);
    show(format, &answer, |wide| text(&answer, wide))
}

fn known(machine: String, answer: proto::EtcdMembersResponse) -> Members {
    let proto::EtcdMembersResponse { members, health } = answer;
    let health = health.unwrap_or_default();
    let member = |proto::EtcdMember { id, name, peer_urls, learner }| Member {
        id: hexadecimal(id),
        name: Some(name).filter(|name| !name.is_empty()),
        peer_urls,
        role: if learner { "Learner" } else { "Voter" },
        leader: id == health.leader_id,
        own: id == health.id,
    };
    let mut members: Vec<_> = members.into_iter().map(member).collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    Members { machine, members, health: health.into() }
}

fn text(answer: &Members, wide: bool) -> String {
    let Members { machine, members, health } = answer;
    let rows = members.iter().map(|member| {
        let Member { id, name, peer_urls, role, leader, own } = member;
        [
            name.clone().unwrap_or_else(|| "(not started)".to_owned()),
            id.clone(),
            (*role).to_owned(),
            if *leader { "yes" } else { "no" }.to_owned(),
            if *own { "this" } else { "" }.to_owned(),
            peer_urls.join(","),
        ]
    });
    let mut text = table(["NAME", "ID", "ROLE", "LEADER", "MACHINE", "PEER URL"], rows);
    text += &format!("\netcd {} on {machine}: {}\n", health.version, sizes(health));
    if wide {
        text += &format!("revision {}\n", health.revision);
    }
    if health.leader.is_none() {
        text += "nobody leads: most members are away, or have just started; nothing can be read or changed\n";
    }
    for problem in health.alarms.iter().map(|alarm| format!("alarm {alarm}")).chain(health.errors.iter().cloned()) {
        text += &format!("{problem}\n");
    }
    text
}

async fn defragment(contact: &Contact, format: Format) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let proto::EtcdDefragmentResponse { before, after } = client.etcd_defragment().await?;
    let machine = client.version().machine.clone();
    let (before, after) = (before.unwrap_or_default().into(), after.unwrap_or_default().into());
    let answer = Defragmented { machine, before, after };
    show(format, &answer, |_| {
        let Defragmented { machine, before, after } = &answer;
        let mut text = format!("{machine}: {}; before: {}\n", sizes(after), sizes(before));
        for alarm in &before.alarms {
            let now = if after.alarms.contains(alarm) { "stays: delete what is not needed" } else { "is taken back" };
            text += &format!("{machine}: the alarm {alarm} {now}\n");
        }
        text
    })
}

fn sizes(health: &Health) -> String {
    let bytes = |bytes: i64| size(u64::try_from(bytes).unwrap_or_default());
    let (database, used, quota) = (bytes(health.database_bytes), bytes(health.used_bytes), bytes(health.quota_bytes));
    format!("database {database}, of that in use {used}, at most {quota}")
}

/// As etcd writes its members' numbers.
fn hexadecimal(id: u64) -> String {
    format!("{id:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_what_is_wrong_are_told() {
        let member = |id, name: &str, learner| proto::EtcdMember {
            id,
            name: name.into(),
            peer_urls: vec![format!("https://{name}:2380")],
            learner,
        };
        let health = proto::EtcdHealth {
            id: 0xab,
            version: "3.7.3".into(),
            database_bytes: 2 << 20,
            used_bytes: 1 << 20,
            quota_bytes: 8 << 30,
            alarms: vec!["NOSPACE".into()],
            ..proto::EtcdHealth::default()
        };
        let members = vec![member(0xcd, "node-2", true), member(0xab, "node-1", false)];
        let answer = proto::EtcdMembersResponse { members, health: Some(health) };
        let text = text(&known("node-1".into(), answer), false);
        for part in [
            "node-1   ab   Voter     no       this      https://node-1:2380\n",
            "node-2   cd   Learner   no                 https://node-2:2380\n",
            "etcd 3.7.3 on node-1: database 2.0 MiB, of that in use 1.0 MiB, at most 8.0 GiB\n",
            "nobody leads",
            "alarm NOSPACE\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
