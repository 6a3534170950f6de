//! Certificates for programs that are measured.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;

/// Whose bearer may do everything (Kubernetes: RBAC).
pub const ADMINISTRATORS: &str = "system:masters";

/// An authority that servers and clients trust.
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, each PEM.
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one of that name.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// What a server at these addresses shows.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn server(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.subject_alt_names.extend(addresses.into_iter().map(|address| SanType::IpAddress(IpAddr::V4(address))));
        self.leaf("server", ExtendedKeyUsagePurpose::ServerAuth, params)
    }

    /// What a client of that name shows, as one of a group.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self, name: &str, group: &str) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, group);
        self.leaf(name, ExtendedKeyUsagePurpose::ClientAuth, params)
    }

    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose, mut params: CertificateParams) -> Result<Leaf> {
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate()?;
        Ok(Leaf { certificate: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

/// The way to an API server for a client of that name, whose certificate and key lie in a folder with the authority's.
pub fn kubeconfig(server: &str, folder: &Path, name: &str) -> String {
    let file = |name: &str| folder.join(name);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "bench", "cluster": { "server": server, "certificate-authority": file("ca.crt") } }],
        "users": [{
            "name": name,
            "user": {
                "client-certificate": file(&format!("{name}.crt")),
                "client-key": file(&format!("{name}.key")),
            },
        }],
        "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": name } }],
        "current-context": "bench",
    });
    config.to_string()
}
