//! `services` and `service`

use std::time::Duration;

use garboard_machine_api::proto;
use serde::Serialize;

use crate::cli::ServiceCommand;
use crate::config::Contact;
use crate::output::{Format, age, show, size, table};

/// A service, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub name: String,
    pub state: String,
    pub ready: bool,
    pub pid: Option<u32>,
    pub in_state_ms: u64,
    pub restarts: u32,
    pub crash_looping: bool,
    pub retry_in_ms: Option<u64>,
    pub message: String,
    pub waiting_on: Vec<String>,
    pub last_exit: Option<String>,
    pub last_lines: Vec<String>,
    pub memory_bytes: u64,
    pub cpu_usec: u64,
}

impl From<proto::Service> for Service {
    fn from(service: proto::Service) -> Self {
        let proto::Service {
            name,
            state,
            ready,
            pid,
            in_state_ms,
            restarts,
            crash_looping,
            message,
            last_exit,
            waiting_on,
            last_lines,
            memory_bytes,
            cpu_usec,
            retry_in_ms,
        } = service;
        Self {
            name,
            state,
            ready,
            pid: Some(pid).filter(|pid| *pid != 0),
            in_state_ms,
            restarts,
            crash_looping,
            retry_in_ms: Some(retry_in_ms).filter(|time| *time != 0),
            message,
            waiting_on,
            last_exit: Some(last_exit).filter(|exit| !exit.is_empty()),
            last_lines,
            memory_bytes,
            cpu_usec,
        }
    }
}

impl Service {
    /// Why it is as it is, in a few words; nothing where all is well.
    pub fn remark(&self) -> String {
        let mut parts = Vec::new();
        if !self.waiting_on.is_empty() {
            parts.push(format!("waits for {}", self.waiting_on.join(", ")));
        }
        if !self.message.is_empty() {
            parts.push(self.message.clone());
        }
        if let Some(retry) = self.retry_in_ms {
            parts.push(format!("next try in {}", age(Duration::from_millis(retry.saturating_add(999)))));
        }
        if self.crash_looping {
            parts.push("keeps failing".to_owned());
        }
        parts.join("; ")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    machine: String,
    services: Vec<Service>,
}

pub async fn list(contact: &Contact, format: Format) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let services = client.services().await?.into_iter().map(Service::from).collect();
    let answer = Answer { machine: client.version().machine.clone(), services };
    show(format, &answer, |wide| text(&answer.services, wide))
}

fn text(services: &[Service], wide: bool) -> String {
    let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
    let in_state = |service: &Service| age(Duration::from_millis(service.in_state_ms));
    let mut text = if wide {
        let rows = services.iter().map(|service| {
            [
                service.name.clone(),
                service.state.clone(),
                yes(service.ready),
                in_state(service),
                service.restarts.to_string(),
                service.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                size(service.memory_bytes),
                format!("{:.1}s", Duration::from_micros(service.cpu_usec).as_secs_f64()),
                service.last_exit.clone().unwrap_or_default(),
                service.remark(),
            ]
        });
        table(["NAME", "STATE", "READY", "FOR", "RESTARTS", "PID", "MEMORY", "CPU", "LAST EXIT", "REMARK"], rows)
    } else {
        let rows = services.iter().map(|service| {
            [
                service.name.clone(),
                service.state.clone(),
                yes(service.ready),
                in_state(service),
                service.restarts.to_string(),
                size(service.memory_bytes),
                service.remark(),
            ]
        });
        table(["NAME", "STATE", "READY", "FOR", "RESTARTS", "MEMORY", "REMARK"], rows)
    };
    for service in services.iter().filter(|service| !service.last_lines.is_empty()) {
        text += &format!("\nLast lines of {}:\n", service.name);
        for line in &service.last_lines {
            text += &format!("  {line}\n");
        }
    }
    text
}

pub async fn act(contact: &Contact, command: &ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Restart { name } => {
            contact.connect().await?.restart_service(name).await?;
            eprintln!("{name} is being restarted");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_shows_why_and_its_last_lines() {
        let service = Service::from(proto::Service {
            name: "etcd".into(),
            state: "BackOff".into(),
            in_state_ms: 2000,
            restarts: 3,
            crash_looping: true,
            retry_in_ms: 4001,
            message: "exited with 1".into(),
            last_lines: vec!["disk full".into()],
            ..proto::Service::default()
        });
        assert_eq!(
            text(&[service], false),
            "NAME   STATE     READY   FOR   RESTARTS   MEMORY   REMARK\n\
             etcd   BackOff   no      2s    3          0 KiB    exited with 1; next try in 5s; keeps failing\n\
             \nLast lines of etcd:\n  disk full\n"
        );
    }
}
