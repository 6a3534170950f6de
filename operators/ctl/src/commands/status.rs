//! `status`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garboard_machine_api::proto;
use serde::Serialize;

use super::service::Service;
use crate::config::Contact;
use crate::output::{Format, age, show, table, time};

/// What is known of a machine, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    machine: String,
    pub phase: String,
    uptime_ms: u64,
    garboard: String,
    kubernetes: String,
    machine_id: String,
    boot_id: String,
    slot: String,
    root_hash: String,
    pub addresses: Vec<String>,
    api_endpoint: Option<String>,
    pub conditions: Vec<Condition>,
    pub problems: Vec<String>,
    pub services: Vec<Service>,
}

/// A condition of the machine, or of what is declared on it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub kind: String,
    name: String,
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    since: Option<String>,
    #[serde(skip)]
    since_unix_ms: i64,
}

impl From<proto::Condition> for Condition {
    fn from(condition: proto::Condition) -> Self {
        let proto::Condition { kind, name, r#type: type_, status, reason, message, since_unix_ms } = condition;
        Self { kind, name, type_, status, reason, message, since: time(since_unix_ms), since_unix_ms }
    }
}

impl Status {
    /// From the machine's answers.
    pub fn new(status: proto::StatusResponse, services: Vec<proto::Service>) -> Self {
        let proto::StatusResponse {
            machine,
            phase,
            machine_id,
            boot_id,
            garboard,
            kubernetes,
            root_hash,
            slot,
            uptime_ms,
            addresses,
            api_endpoint,
            conditions,
            problems,
        } = status;
        Self {
            machine,
            phase,
            uptime_ms,
            garboard,
            kubernetes,
            machine_id,
            boot_id,
            slot,
            root_hash,
            addresses,
            api_endpoint: Some(api_endpoint).filter(|endpoint| !endpoint.is_empty()),
            conditions: conditions.into_iter().map(Condition::from).collect(),
            problems,
            services: services.into_iter().map(Service::from).collect(),
        }
    }
}

pub async fn run(contact: &Contact, format: Format) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let status = Status::new(client.status().await?, client.services().await?);
    show(format, &status, |wide| text(&status, wide, SystemTime::now()))
}

fn text(status: &Status, wide: bool, now: SystemTime) -> String {
    let ready = status.services.iter().filter(|service| service.ready).count();
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let mut facts = vec![
        (
            "Machine",
            format!("{}, {} since {}", status.machine, status.phase, age(Duration::from_millis(status.uptime_ms))),
        ),
        ("Garboard", status.garboard.clone()),
        ("Kubernetes", status.kubernetes.clone()),
        ("Addresses", or_none(status.addresses.join(", "))),
        ("API", or_none(status.api_endpoint.clone().unwrap_or_default())),
        ("Services", format!("{ready} of {} ready", status.services.len())),
    ];
    if wide {
        facts.push(("Machine ID", status.machine_id.clone()));
        facts.push(("Boot ID", status.boot_id.clone()));
        facts.push(("Slot", status.slot.clone()));
        facts.push(("Root hash", or_none(status.root_hash.clone())));
    }
    let mut text = String::new();
    for (name, value) in facts {
        text += format!("{name:<12}{value}").trim_end();
        text.push('\n');
    }
    if !status.conditions.is_empty() {
        let rows = status.conditions.iter().map(|condition| {
            [
                format!("{}/{}", condition.kind, condition.name),
                condition.type_.clone(),
                condition.status.clone(),
                since(condition.since_unix_ms, now),
                condition.reason.clone(),
                condition.message.clone(),
            ]
        });
        text.push('\n');
        text += &table(["OBJECT", "CONDITION", "STATUS", "FOR", "REASON", "MESSAGE"], rows);
    }
    let unready: Vec<_> = status.services.iter().filter(|service| !service.ready).collect();
    if !unready.is_empty() {
        let rows = unready.iter().map(|service| [service.name.clone(), service.state.clone(), service.remark()]);
        text.push('\n');
        text += &table(["NOT READY", "STATE", "REMARK"], rows);
    }
    if !status.problems.is_empty() {
        text += "\nProblems:\n";
        for problem in &status.problems {
            text += &format!("  {problem}\n");
        }
    }
    text
}

fn since(unix_ms: i64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    match u64::try_from(unix_ms) {
        Ok(0) | Err(_) => String::new(),
        Ok(then) => age(now.saturating_sub(Duration::from_millis(then))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_wrong_is_shown() {
        let condition = proto::Condition {
            kind: "Machine".into(),
            name: "node-1".into(),
            r#type: "Ready".into(),
            status: "False".into(),
            reason: "Starting".into(),
            message: "etcd is not ready".into(),
            since_unix_ms: 1_000,
        };
        let status = proto::StatusResponse {
            machine: "node-1".into(),
            phase: "Running".into(),
            garboard: "0.1.0".into(),
            uptime_ms: 61_000,
            conditions: vec![condition],
            problems: vec!["manifest machine.yaml: unknown field hostnam".into()],
            ..proto::StatusResponse::default()
        };
        let waiting = proto::Service {
            name: "kube-apiserver".into(),
            state: "Waiting".into(),
            waiting_on: vec!["etcd to be ready".into()],
            ..proto::Service::default()
        };
        let ready = proto::Service { name: "containerd".into(), ready: true, ..proto::Service::default() };
        let text = text(&Status::new(status, vec![waiting, ready]), false, UNIX_EPOCH + Duration::from_secs(11));
        for part in [
            "Machine     node-1, Running since 61s\n",
            "Services    1 of 2 ready\n",
            "API         none\n",
            "Machine/node-1   Ready       False    10s   Starting   etcd is not ready\n",
            "kube-apiserver   Waiting   waits for etcd to be ready\n",
            "Problems:\n  manifest machine.yaml: unknown field hostnam\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
