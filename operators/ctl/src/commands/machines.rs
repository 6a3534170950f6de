//! `machines`

use std::time::Duration;

use garboard_machine_api::client::ClientError;
use garboard_machine_api::proto::VersionResponse;
use garboard_machine_api::waiting::{self, Announcement, Found};
use serde::Serialize;

use crate::cli::{Machines, Target};
use crate::config::Contact;
use crate::explain::in_short;
use crate::output::{Format, printable, show, table};

#[derive(Serialize)]
struct Known {
    machines: Vec<Machine>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    name: String,
    endpoint: Option<String>,
    answers: bool,
    garboard: Option<String>,
    kubernetes: Option<String>,
    role: Option<String>,
    message: String,
}

#[derive(Serialize)]
struct AllWaiting {
    waiting: Vec<Waiting>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    endpoint: Option<String>,
    addresses: Vec<String>,
    port: u16,
    key: String,
    garboard: String,
    endorsement_key: Option<String>,
    product: Option<String>,
    serial_number: Option<String>,
    #[serde(rename = "systemUUID")]
    system_uuid: Option<String>,
    mac_addresses: Vec<String>,
}

pub async fn run(target: &Target, Machines { waiting, seconds, output }: &Machines) -> anyhow::Result<()> {
    match waiting {
        true => show_waiting(Duration::from_secs(*seconds), output.output).await,
        false => show_known(target, output.output).await,
    }
}

async fn show_known(target: &Target, format: Format) -> anyhow::Result<()> {
    let contacts = Contact::each(target)?;
    let machines = futures::future::join_all(contacts.into_iter().map(|(name, contact)| ask(name, contact))).await;
    let known = Known { machines };
    show(format, &known, |_| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let row = |machine: &Machine| {
            let Machine { name, endpoint, answers, garboard, kubernetes: _, role, message } = machine;
            let answers = if *answers { "yes" } else { "no" };
            [name.clone(), or_dash(endpoint), answers.to_owned(), or_dash(garboard), or_dash(role), message.clone()]
        };
        table(["NAME", "ENDPOINT", "ANSWERS", "GARBOARD", "YOUR ROLE", "REMARK"], known.machines.iter().map(row))
    })
}

async fn ask(name: String, contact: anyhow::Result<Contact>) -> Machine {
    let mut machine = Machine {
        name,
        endpoint: None,
        answers: false,
        garboard: None,
        kubernetes: None,
        role: None,
        message: String::new(),
    };
    let version = match contact {
        Ok(contact) => {
            machine.endpoint = Some(contact.endpoint.to_string());
            contact.connect().await.map(|client| client.version().clone())
        }
        Err(error) => Err(error),
    };
    match version {
        Ok(VersionResponse { garboard, kubernetes, caller_role, .. }) => {
            let known = |text: String| Some(text).filter(|text| !text.is_empty());
            machine.answers = true;
            machine.garboard = known(garboard);
            machine.kubernetes = known(kubernetes);
            machine.role = known(caller_role);
        }
        Err(error) => {
            machine.message = match error.downcast_ref::<ClientError>() {
                Some(client) => in_short(client),
                None => format!("{error:#}"),
            };
        }
    }
    machine
}

async fn show_waiting(time: Duration, format: Format) -> anyhow::Result<()> {
    let found = waiting::find(time).await?;
    let all = AllWaiting { waiting: found.into_iter().map(Waiting::from).collect() };
    if all.waiting.is_empty() {
        eprintln!(
            "No machine that waits was found within {} s on the networks of this computer. A machine in another network shows its address \
             and its key on its console.",
            time.as_secs()
        );
    }
    show(format, &all, |wide| {
        let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
        let row = |machine: &Waiting| {
            let macs = machine.mac_addresses.join(",");
            let rest = if wide {
                format!(
                    "{}   {}   {}",
                    or_dash(&machine.system_uuid),
                    or_dash(&machine.endorsement_key),
                    printable(&macs)
                )
            } else {
                String::new()
            };
            [
                or_dash(&machine.endpoint),
                machine.key.clone(),
                or_dash(&machine.product),
                or_dash(&machine.serial_number),
                rest,
            ]
        };
        let last = if wide { "UUID, ENDORSEMENT KEY, MAC ADDRESSES" } else { "" };
        table(["ENDPOINT", "KEY", "PRODUCT", "SERIAL", last], all.waiting.iter().map(row))
    })
}

impl From<Found> for Waiting {
    fn from(Found { announcement, addresses, port }: Found) -> Self {
        let Announcement { pin, version, endorsement_key, mac_addresses, product, serial_number, system_uuid } =
            announcement;
        let endpoint = addresses.first().map(|address| std::net::SocketAddr::new(*address, port).to_string());
        Self {
            endpoint,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            port,
            key: pin.to_string(),
            garboard: version,
            endorsement_key: endorsement_key.map(|key| key.to_string()),
            product,
            serial_number,
            system_uuid,
            mac_addresses,
        }
    }
}
