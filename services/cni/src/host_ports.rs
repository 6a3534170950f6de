//! Host ports: the elements of the firewall's sets that lead a port of the machine to a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tracing::{debug, warn};

use crate::attachment::{Attachment, PortMapping, Protocol};
use crate::firewall::{TABLE, Version, octets};
use crate::netfilter::conntrack::{self, Flow};
use crate::netfilter::nft::{self, Element};
use crate::netfilter::{Batch, Connection, NetfilterError};

/// The elements that one attachment's host ports need, by set.
pub(crate) fn elements<'a>(attachment: &'a Attachment) -> impl Iterator<Item = (&'static str, Element)> + 'a {
    attachment.addresses.iter().flat_map(move |&pod| {
        let version = Version::of(pod);
        let mut mapped = attachment.ports.iter().filter_map(move |port| port_element(pod, port)).peekable();
        let hairpin = mapped.peek().is_some().then(|| {
            let key = [octets(pod), octets(pod)].concat();
            (version.hairpins, Element { key, value: None })
        });
        mapped.chain(hairpin)
    })
}

fn port_element(pod: IpAddr, port: &PortMapping) -> Option<(&'static str, Element)> {
    let version = Version::of(pod);
    let tail = [[port.protocol.number(), 0, 0, 0], padded(port.host_port)].concat();
    let value = Some([octets(pod), padded(port.container_port).to_vec()].concat());
    match port.host_ip {
        None => Some((version.ports, Element { key: tail, value })),
        Some(address) if address.is_unspecified() && address.is_ipv4() == pod.is_ipv4() => {
            Some((version.ports, Element { key: tail, value }))
        }
        Some(address) if address.is_ipv4() == pod.is_ipv4() => {
            Some((version.addressed_ports, Element { key: [octets(address), tail].concat(), value }))
        }
        Some(_) => None,
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Opens the host ports of an attachment.
///
/// # Errors
/// When the kernel refuses; none is open then.
pub fn open(attachment: &Attachment) -> Result<(), NetfilterError> {
    if attachment.ports.is_empty() {
        return Ok(());
    }
    let batch = nft::transaction(|batch| each_set(attachment, batch, nft::add_elements));
    let connection = Connection::open()?;
    connection.run(&batch)?;
    let ports: Vec<u16> = udp_ports(attachment).collect();
    forget_flows(&connection, &ports, |flow| ports.contains(&flow.destination_port));
    Ok(())
}

fn udp_ports(attachment: &Attachment) -> impl Iterator<Item = u16> {
    attachment.ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.host_port)
}

/// Flows go on to where they went until they are forgotten. Nothing else depends on it, and they end by themselves when
/// the client pauses, so a kernel that cannot is no failure.
fn forget_flows(connection: &Connection, udp_ports: &[u16], outdated: impl Fn(&Flow) -> bool) {
    if udp_ports.is_empty() {
        return;
    }
    match conntrack::forget(connection, outdated) {
        Ok(0) => {}
        Ok(flows) => debug!(flows, "forgot UDP flows of host ports"),
        Err(error) => warn!(%error, "cannot forget UDP flows of host ports"),
    }
}

/// Closes the host ports of an attachment; those that are not open are no error.
///
/// # Errors
/// When the kernel refuses.
pub fn close(attachment: &Attachment) -> Result<(), NetfilterError> {
    if attachment.ports.is_empty() {
        return Ok(());
    }
    let connection = Connection::open()?;
    match connection.run(&nft::transaction(|batch| each_set(attachment, batch, nft::delete_elements))) {
        // One was not there, so none is gone: remove those that are, one by one.
        Err(error) if error.is_missing() => close_each(&connection, attachment)?,
        other => other?,
    }
    let ports: Vec<u16> = udp_ports(attachment).collect();
    forget_flows(&connection, &ports, |flow| {
        ports.contains(&flow.destination_port) && attachment.addresses.contains(&flow.answered_by)
    });
    Ok(())
}

fn close_each(connection: &Connection, attachment: &Attachment) -> Result<(), NetfilterError> {
    for (set, element) in elements(attachment) {
        let batch = nft::transaction(|batch| nft::delete_elements(batch, TABLE, set, &[element]));
        match connection.run(&batch) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether every host port of an attachment is open.
///
/// # Errors
/// When the table cannot be read.
pub fn are_open(attachment: &Attachment) -> Result<bool, NetfilterError> {
    if attachment.ports.is_empty() {
        return Ok(true);
    }
    let connection = Connection::open()?;
    let mut present = BTreeMap::new();
    for (set, element) in elements(attachment) {
        if !present.contains_key(set) {
            present.insert(set, nft::elements(&connection, TABLE, set)?);
        }
        if !present.get(set).is_some_and(|elements| elements.contains(&element)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn each_set(attachment: &Attachment, batch: &mut Batch, push: fn(&mut Batch, &str, &str, &[Element])) {
    let mut by_set = BTreeMap::<&'static str, Vec<Element>>::new();
    for (set, element) in elements(attachment) {
        by_set.entry(set).or_default().push(element);
    }
    for (set, elements) in by_set {
        push(batch, TABLE, set, &elements);
    }
}
