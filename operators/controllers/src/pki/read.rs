//! What existing keys and certificates say.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use garboard_api::PublicKeyPin;
use garboard_plan::pki::{ObservedLeaf, Profile, SubjectName, Validity};
use garboard_tpm::TpmKey;
use rcgen::{KeyPair, PublicKeyData};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::issue::{IssueError, Signer};

/// Why a text is no certificate with its key.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No certificate where one should be.
    #[error("there is no readable certificate")]
    Certificate,
    /// The key is missing, malformed or another certificate's.
    #[error("there is no key that belongs to the certificate")]
    Key,
    /// A certificate that may not sign.
    #[error("the certificate is no authority's")]
    NoAuthority,
}

/// The two parts of a file with a certificate and its key.
pub(super) fn split(pem: &str) -> (String, String) {
    let mut parts = (String::new(), String::new());
    let mut certificate = false;
    for line in pem.lines() {
        if line.starts_with("-----BEGIN ") {
            certificate = line.contains("CERTIFICATE");
        }
        let part = if certificate { &mut parts.0 } else { &mut parts.1 };
        part.push_str(line);
        part.push('\n');
    }
    parts
}

/// What a certificate says, and whether `signer` signed it.
pub(super) fn leaf(pem: &str, signer: Option<&Signer>) -> Result<ObservedLeaf, ReadError> {
    let (certificate_pem, key_pem) = split(pem);
    let block = block(&certificate_pem)?;
    let certificate = parse(&block)?;
    check_key(&certificate, &key_pem)?;
    let signed_by_authority = signer.is_some_and(|signer| is_signed_by(&certificate, &signer.certificate_pem));
    Ok(ObservedLeaf { profile: profile(&certificate), validity: validity(&certificate), signed_by_authority })
}

/// The validity of an authority, which must be one; where its key is, it must be its own.
pub(super) fn authority(certificate_pem: &str, key_pem: Option<&str>) -> Result<Validity, ReadError> {
    let block = block(certificate_pem)?;
    let certificate = parse(&block)?;
    if let Some(key_pem) = key_pem {
        check_key(&certificate, key_pem)?;
    }
    if !certificate.is_ca() {
        return Err(ReadError::NoAuthority);
    }
    Ok(validity(&certificate))
}

/// The public half of a private key, PEM.
pub(super) fn public_key(key_pem: &str) -> Result<String, IssueError> {
    Ok(KeyPair::from_pem(key_pem)?.public_key_pem())
}

/// What a certificate (DER) is known by: the digest of its public key.
pub(crate) fn pin(der: &[u8]) -> Option<PublicKeyPin> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
    Some(PublicKeyPin::new(digest.as_ref().try_into().ok()?))
}

/// The same of a certificate in PEM.
pub(super) fn pin_of_pem(pem: &str) -> Option<PublicKeyPin> {
    pin(&block(pem).ok()?.contents)
}

fn block(pem: &str) -> Result<Pem, ReadError> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).map(|(_, block)| block).map_err(|_| ReadError::Certificate)
}

fn parse(block: &Pem) -> Result<X509Certificate<'_>, ReadError> {
    X509Certificate::from_der(&block.contents).map(|(_, certificate)| certificate).map_err(|_| ReadError::Certificate)
}

fn check_key(certificate: &X509Certificate<'_>, key_pem: &str) -> Result<(), ReadError> {
    let public = if TpmKey::is_in(key_pem) {
        TpmKey::from_pem(key_pem).map_err(|_| ReadError::Key)?.public_key_info()
    } else {
        KeyPair::from_pem(key_pem).map_err(|_| ReadError::Key)?.subject_public_key_info()
    };
    if certificate.public_key().raw == public { Ok(()) } else { Err(ReadError::Key) }
}

fn is_signed_by(certificate: &X509Certificate<'_>, authority_pem: &str) -> bool {
    let Ok(block) = block(authority_pem) else { return false };
    parse(&block).is_ok_and(|authority| certificate.verify_signature(Some(authority.public_key())).is_ok())
}

fn profile(certificate: &X509Certificate<'_>) -> Profile {
    let subject = certificate.subject();
    let mut names = BTreeSet::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => {
                    names.insert(SubjectName::Dns((*name).to_owned()));
                }
                GeneralName::IPAddress(bytes) => names.extend(ip_address(bytes).map(SubjectName::Ip)),
                _ => {}
            }
        }
    }
    let usage = certificate.extended_key_usage().ok().flatten();
    Profile {
        common_name: subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect(),
        organization: subject.iter_organization().find_map(|name| name.as_str().ok()).map(str::to_owned),
        names,
        server: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
        client: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { not_before: system_time(validity.not_before), not_after: system_time(validity.not_after) }
}

fn system_time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0))
}
