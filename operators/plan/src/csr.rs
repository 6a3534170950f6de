//! Whether a kubelet's request for a serving certificate is approved.
//!
//! A kubelet may ask only for itself: the requester is the node, the subject is the requester, and each name in the certificate is one
//! that the node's own object reports (the documentation of the signer `kubernetes.io/kubelet-serving`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// The signer of kubelets' serving certificates.
pub const SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Why a request is denied, in one word, where there is no better one.
pub const NOT_ALLOWED: &str = "NotAllowed";

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
const REQUIRED_USAGE: &str = "server auth";
const ALLOWED_USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

/// A request as the API server holds it: who asks is vouched for by the API server, the rest is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// User of the requester.
    pub username: &'a str,
    /// Groups of the requester.
    pub groups: &'a [String],
    /// Usages asked for.
    pub usages: &'a [String],
    /// The PKCS#10 request, DER.
    pub der: &'a [u8],
}

/// Names and addresses that a node's object reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// Host names.
    pub names: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The requester is no node.
    #[error("{0:?} is no node: only {NODE_PREFIX}NAME in {NODES_GROUP} may ask for a kubelet's serving certificate")]
    NotANode(String),
    /// The usages are not those of a server.
    #[error(
        "usages {0:?}: server auth is needed, and beside it only digital signature and key encipherment are allowed"
    )]
    Usages(Vec<String>),
    /// The request cannot be read, or is not signed by its own key.
    #[error("the request is not a PKCS#10 request that is signed by its own key")]
    Unreadable,
    /// The subject is not the requester.
    #[error("subject {0:?}: it must be CN={1}, O={NODES_GROUP}")]
    Subject(String, String),
    /// It asks for no name.
    #[error("no DNS name and no address is asked for")]
    Nameless,
    /// It asks for a name that the node does not report.
    #[error("{0} is no name or address of the node")]
    Foreign(String),
    /// It asks for a kind of name that servers have no use for.
    #[error("only DNS names and addresses may be asked for")]
    KindOfName,
}

/// The name of the node that asks.
///
/// # Errors
/// When the requester is no node.
pub fn node<'a>(request: &Request<'a>) -> Result<&'a str, Denial> {
    let name = request.username.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty());
    match name {
        Some(name) if request.groups.iter().any(|group| group == NODES_GROUP) => Ok(name),
        _ => Err(Denial::NotANode(request.username.to_owned())),
    }
}

/// Approves a request of the node with these names.
///
/// # Errors
/// Why it is denied.
pub fn check(request: &Request<'_>, node_names: &NodeNames) -> Result<(), Denial> {
    node(request)?;
    let known = |usage: &String| ALLOWED_USAGES.contains(&usage.as_str());
    if !request.usages.iter().all(known) || !request.usages.iter().any(|usage| usage == REQUIRED_USAGE) {
        return Err(Denial::Usages(request.usages.to_vec()));
    }
    let parsed = parse(request.der)?;
    if !has_subject(&parsed, request.username, Some(NODES_GROUP)) {
        let subject = parsed.certification_request_info.subject.to_string();
        return Err(Denial::Subject(subject, request.username.to_owned()));
    }
    let mut asked = 0;
    for extension in parsed.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            named(name, node_names)?;
            asked += 1;
        }
    }
    if asked == 0 { Err(Denial::Nameless) } else { Ok(()) }
}

/// A request that is signed by its own key.
pub(crate) fn parse(der: &[u8]) -> Result<X509CertificationRequest<'_>, Denial> {
    let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|_| Denial::Unreadable)?;
    if !rest.is_empty() || parsed.verify_signature().is_err() {
        return Err(Denial::Unreadable);
    }
    Ok(parsed)
}

/// Whether a request is for this common name in this organization, and says nothing else.
pub(crate) fn has_subject(request: &X509CertificationRequest<'_>, name: &str, organization: Option<&str>) -> bool {
    let subject = &request.certification_request_info.subject;
    let common: Vec<_> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let organizations: Vec<_> = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
    let parts = 1 + usize::from(organization.is_some());
    common == [name] && organizations == organization.as_slice() && subject.iter_attributes().count() == parts
}

fn named(name: &GeneralName<'_>, node: &NodeNames) -> Result<(), Denial> {
    match name {
        GeneralName::DNSName(name) if node.names.contains(*name) => Ok(()),
        GeneralName::DNSName(name) => Err(Denial::Foreign((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let address = match <[u8; 4]>::try_from(*bytes) {
                Ok(four) => IpAddr::from(four),
                Err(_) => <[u8; 16]>::try_from(*bytes).map(IpAddr::from).map_err(|_| Denial::Unreadable)?,
            };
            if node.addresses.contains(&address) { Ok(()) } else { Err(Denial::Foreign(address.to_string())) }
        }
        _ => Err(Denial::KindOfName),
    }
}

#[cfg(test)]
#[path = "csr_tests.rs"]
mod tests;
