//! `version`

use serde::Serialize;

use crate::cli::{Target, Version};
use crate::config::Contact;
use crate::output::{show, table};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    name: String,
    garboard: String,
    kubernetes: String,
    root_hash: String,
    caller: Caller,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Caller {
    name: String,
    role: String,
}

pub async fn run(target: &Target, arguments: &Version) -> anyhow::Result<()> {
    let machine = if arguments.client {
        None
    } else {
        let version = Contact::find(target)?.connect().await?.version().clone();
        Some(Machine {
            name: version.machine,
            garboard: version.garboard,
            kubernetes: version.kubernetes,
            root_hash: version.root_hash,
            caller: Caller { name: version.caller_name, role: version.caller_role },
        })
    };
    let answer = Answer { client: env!("CARGO_PKG_VERSION"), machine };
    show(arguments.output.output, &answer, |_| {
        let mut rows = vec![["garboardctl".to_owned(), answer.client.to_owned()]];
        if let Some(machine) = &answer.machine {
            rows.push([machine.name.clone(), format!("Garboard {}", machine.garboard)]);
            rows.push([String::new(), format!("Kubernetes {}", machine.kubernetes)]);
            rows.push([String::new(), format!("root hash {}", machine.root_hash)]);
            rows.push(["you".to_owned(), format!("{}, {}", machine.caller.name, machine.caller.role)]);
        }
        table(["", "VERSION"], rows)
    })
}
