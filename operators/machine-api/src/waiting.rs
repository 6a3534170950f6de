//! How machines that wait to be claimed are found on a link: each announces itself as an instance of `_garboard._tcp` (DNS-SD, RFC 6763)
//! by multicast DNS (RFC 6762).
//!
//! Whoever is on the link can announce anything. Only the key is proved, when a connection is made, and the TPM on request.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::time::{Instant, timeout_at};

use crate::Pin;

/// What is looked for.
const SERVICE: &str = "_garboard._tcp.local.";
/// Hardware addresses that are announced: what has more links is known by the first of them.
const MAX_MAC_ADDRESSES: usize = 8;
/// Longest text of the firmware that is announced, characters.
const MAX_TEXT: usize = 64;
/// Machines that are kept: who floods a link is not followed.
const MAX_FOUND: usize = 1024;
/// Digits of the fingerprint by which an announcement is named.
const NAME_DIGITS: usize = 16;

/// What a machine that waits says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The pin of its key.
    pub pin: Pin,
    /// Garboard's version.
    pub version: String,
    /// The pin of the endorsement key of its TPM.
    pub endorsement_key: Option<Pin>,
    /// The hardware addresses of its links, as `52:54:00:12:34:56`.
    pub mac_addresses: Vec<String>,
    /// The product's name in its firmware.
    pub product: Option<String>,
    /// The serial number in its firmware.
    pub serial_number: Option<String>,
    /// The UUID in its firmware.
    pub system_uuid: Option<String>,
}

/// A machine that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it says of itself.
    pub announcement: Announcement,
    /// Its addresses on the link, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The port of its machine API.
    pub port: u16,
}

/// Multicast DNS is not possible.
#[derive(Debug, thiserror::Error)]
#[error("multicast DNS is not possible here")]
pub struct MulticastError(#[from] mdns_sd::Error);

/// Announces a machine until it is dropped.
#[derive(Debug)]
pub struct Announcer {
    _daemon: Daemon,
}

/// Follows the machines that announce themselves.
#[derive(Debug)]
pub struct Browser {
    _daemon: Daemon,
    events: Receiver<ServiceEvent>,
    found: BTreeMap<String, Found>,
}

/// The thread that speaks multicast DNS; it says farewell and ends when this is dropped.
struct Daemon(ServiceDaemon);

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").finish_non_exhaustive()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It fails when the thread has ended already.
        drop(self.0.shutdown());
    }
}

impl Announcer {
    /// Announces the machine API at `port` on all links, also on those that get their address later.
    ///
    /// # Errors
    /// [`MulticastError`].
    pub fn start(announcement: &Announcement, port: u16) -> Result<Self, MulticastError> {
        let daemon = Daemon(ServiceDaemon::new()?);
        let digits: String =
            announcement.pin.to_string().trim_start_matches("sha256:").chars().take(NAME_DIGITS).collect();
        let host = format!("garboard-{digits}.local.");
        let properties = properties(announcement);
        let service = ServiceInfo::new(SERVICE, &digits, &host, "", port, properties.as_slice())?;
        daemon.0.register(service.enable_addr_auto())?;
        Ok(Self { _daemon: daemon })
    }
}

impl Browser {
    /// Looks on the links of these names, or on all.
    ///
    /// # Errors
    /// [`MulticastError`].
    pub fn start(links: Option<&[String]>) -> Result<Self, MulticastError> {
        let daemon = Daemon(ServiceDaemon::new()?);
        if let Some(links) = links {
            daemon.0.disable_interface(IfKind::All)?;
            daemon.0.enable_interface(links.iter().map(|link| IfKind::Name(link.clone())).collect::<Vec<_>>())?;
        }
        let events = daemon.0.browse(SERVICE)?;
        Ok(Self { _daemon: daemon, events, found: BTreeMap::new() })
    }

    /// The machines that are there now.
    pub fn found(&self) -> impl Iterator<Item = &Found> {
        self.found.values()
    }

    /// Waits until another machine is there, or one is not any more. Cancel-safe.
    ///
    /// # Errors
    /// When nothing will come any more.
    pub async fn changed(&mut self) -> Result<(), MulticastError> {
        loop {
            let ended = || mdns_sd::Error::Msg("the thread has ended".to_owned());
            match self.events.recv_async().await.map_err(|_| ended())? {
                ServiceEvent::ServiceResolved(service) => {
                    let known = self.found.contains_key(&service.fullname);
                    if let Some(found) = read(&service).filter(|_| known || self.found.len() < MAX_FOUND)
                        && self.found.insert(service.fullname.clone(), found.clone()) != Some(found)
                    {
                        return Ok(());
                    }
                }
                ServiceEvent::ServiceRemoved(_, name) if self.found.remove(&name).is_some() => return Ok(()),
                _ => {}
            }
        }
    }
}

/// The machines that announce themselves within this time on the links of this computer.
///
/// # Errors
/// [`MulticastError`].
pub async fn find(time: Duration) -> Result<Vec<Found>, MulticastError> {
    let mut browser = Browser::start(None)?;
    let end = Instant::now() + time;
    while let Ok(changed) = timeout_at(end, browser.changed()).await {
        changed?;
    }
    Ok(browser.found.into_values().collect())
}

fn properties(announcement: &Announcement) -> Vec<(&'static str, String)> {
    let Announcement { pin, version, endorsement_key, mac_addresses, product, serial_number, system_uuid } =
        announcement;
    let mac_addresses: Vec<_> = mac_addresses.iter().take(MAX_MAC_ADDRESSES).map(String::as_str).collect();
    let mut properties = vec![("key", pin.to_string()), ("version", version.clone()), ("mac", mac_addresses.join(","))];
    properties.extend(endorsement_key.map(|key| ("tpm", key.to_string())));
    let texts = [("product", product), ("serial", serial_number), ("uuid", system_uuid)];
    properties.extend(texts.into_iter().filter_map(|(key, text)| Some((key, shortened(text.as_deref()?)))));
    properties
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).take(MAX_TEXT).collect()
}

/// What an announcement says; none if it is not one of a machine.
fn read(service: &ResolvedService) -> Option<Found> {
    let text = |key: &str| {
        let text = service.get_property_val_str(key).map(shortened);
        text.filter(|text| !text.is_empty())
    };
    let announcement = Announcement {
        pin: service.get_property_val_str("key")?.parse().ok()?,
        version: text("version").unwrap_or_default(),
        endorsement_key: service.get_property_val_str("tpm").and_then(|key| key.parse().ok()),
        mac_addresses: service
            .get_property_val_str("mac")
            .unwrap_or_default()
            .split(',')
            .filter(|mac| !mac.is_empty())
            .take(MAX_MAC_ADDRESSES)
            .map(shortened)
            .collect(),
        product: text("product"),
        serial_number: text("serial"),
        system_uuid: text("uuid"),
    };
    let mut addresses: Vec<_> = service.get_addresses().iter().map(ScopedIp::to_ip_addr).collect();
    addresses.sort_unstable();
    Some(Found { announcement, addresses, port: service.get_port() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn announcement() -> Announcement {
        Announcement {
            pin: Pin::of_public_key(&std::process::id().to_be_bytes()),
            version: "0.1.0".into(),
            endorsement_key: Some(Pin::of_public_key(b"endorsement key")),
            mac_addresses: vec!["52:54:00:00:00:01".into(), "52:54:00:00:00:02".into()],
            product: Some("Standard PC".into()),
            serial_number: None,
            system_uuid: Some("4c4c4544-0042-3510-8051-b4c04f333632".into()),
        }
    }

    #[tokio::test]
    async fn a_machine_is_found_while_it_announces_itself() {
        let mut browser = Browser::start(None).unwrap();
        let announcer = Announcer::start(&announcement(), 7443).unwrap();
        let its = |found: &Found| found.announcement == announcement() && found.port == 7443;
        let come = async {
            while !browser.found().any(|found| its(found) && !found.addresses.is_empty()) {
                browser.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, come).await.expect("it is found");
        drop(announcer);
        let gone = async {
            while browser.found().any(its) {
                browser.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, gone).await.expect("it is gone");
    }

    #[test]
    fn a_text_of_the_firmware_is_bounded_and_draws_nothing() {
        assert_eq!(shortened("Standard\x1b[31m PC\n"), "Standard[31m PC");
        assert_eq!(shortened(&"x".repeat(500)).len(), MAX_TEXT);
    }
}
