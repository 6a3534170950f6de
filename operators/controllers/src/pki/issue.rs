//! Making keys and certificates: ECDSA on P-256 throughout.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use garboard_plan::pki::{Profile, SubjectName, Validity};
use garboard_tpm::{SealedKeyError, Tpm, TpmError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::key::LeafKey;
use super::read;

/// Why a key or certificate could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A key or certificate is malformed, or a name in it is.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
    /// The text is no certificate with its key.
    #[error(transparent)]
    Read(#[from] read::ReadError),
    /// The TPM has not made or used a key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A text says that it is a key of a TPM, and is of no use.
    #[error(transparent)]
    Sealed(#[from] SealedKeyError),
    /// The kernel gave no random bytes.
    #[error("there are no random bytes")]
    Random,
    /// Control-plane machines alone have an authority's key.
    #[error("this machine signs nothing: only control-plane machines do")]
    NoKey,
}

impl IssueError {
    /// Whether the same may come out otherwise another time.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Tpm(error) if !matches!(error, TpmError::ForeignKey))
    }
}

/// An authority; its key is on control-plane machines only.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) certificate_pem: String,
    pub(super) validity: Validity,
    issuer: Option<Issuer<'static, KeyPair>>,
}

impl Signer {
    /// An authority from the PEM of its certificate and, where it is, its key.
    pub(super) fn parse(pem: &str) -> Result<Self, IssueError> {
        let (certificate_pem, key_pem) = read::split(pem);
        let key_pem = Some(key_pem).filter(|pem| !pem.is_empty());
        let validity = read::authority(&certificate_pem, key_pem.as_deref())?;
        let issuer = match key_pem {
            Some(pem) => Some(Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(&pem)?)?),
            None => None,
        };
        Ok(Self { certificate_pem, validity, issuer })
    }

    /// Whether it has its key.
    pub(super) fn signs(&self) -> bool {
        self.issuer.is_some()
    }
}

/// A request for a certificate, and the key that it is for.
pub struct CertificateRequest {
    /// PKCS #10, PEM.
    pub pem: String,
    pub(super) key_pem: String,
}

/// A request for a client's certificate with this key.
pub(super) fn request(profile: &Profile, key: &LeafKey) -> Result<CertificateRequest, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&profile.common_name, profile.organization.as_deref());
    let signed = params.serialize_request(key).map_err(|said| key.failure(said))?;
    Ok(CertificateRequest { pem: signed.pem()?, key_pem: key.to_pem()? })
}

/// A request for a client's certificate with a key that is there, PEM, and in the TPM if it says so.
pub(super) fn request_with(
    profile: &Profile,
    key_pem: &str,
    tpm: Option<&Tpm>,
) -> Result<CertificateRequest, IssueError> {
    request(profile, &LeafKey::from_pem(key_pem, tpm)?)
}

/// A new authority: certificate and key, PEM.
pub(super) fn authority(common_name: &str, validity: Validity) -> Result<String, IssueError> {
    let key = KeyPair::generate()?;
    let mut params = params(common_name, None, validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    Ok(certificate.pem() + &key.serialize_pem())
}

/// A new certificate, and its key as it is kept, PEM.
pub(super) fn leaf(
    signer: &Signer,
    profile: &Profile,
    validity: Validity,
    key: &LeafKey,
) -> Result<String, IssueError> {
    let Profile { common_name, organization, names, server, client } = profile;
    let mut params = params(common_name, organization.as_deref(), validity);
    for name in names {
        params.subject_alt_names.push(match name {
            SubjectName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            SubjectName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    if *server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if *client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    Ok(sign(signer, params, key)? + &key.to_pem()?)
}

/// A client certificate for a public key (DER), PEM.
pub(super) fn client(
    signer: &Signer,
    public_key: &[u8],
    common_name: &str,
    organization: &str,
    validity: Validity,
) -> Result<String, IssueError> {
    let mut params = params(common_name, Some(organization), validity);
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    sign(signer, params, &SubjectPublicKeyInfo::from_der(public_key)?)
}

fn sign(signer: &Signer, mut params: CertificateParams, key: &impl PublicKeyData) -> Result<String, IssueError> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let issuer = signer.issuer.as_ref().ok_or(IssueError::NoKey)?;
    Ok(params.signed_by(key, issuer)?.pem())
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn params(common_name: &str, organization: Option<&str>, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common_name, organization);
    params.not_before = whole_seconds(validity.not_before);
    params.not_after = whole_seconds(validity.not_after);
    params
}

/// Certificates know no parts of a second.
fn whole_seconds(time: SystemTime) -> time::OffsetDateTime {
    let time = time::OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time)
}

/// A new key that signs service account tokens, PEM.
pub(super) fn signing_key() -> Result<String, IssueError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// A new key of 32 bytes, base64.
pub(super) fn encryption_key() -> Result<String, IssueError> {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| IssueError::Random)?;
    Ok(STANDARD.encode(key) + "\n")
}
