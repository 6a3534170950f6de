//! The configuration file.
//!
//! ```json
//! {"listen": ["10.244.0.1:53"], "domain": "cluster.local", "server": "https://127.0.0.1:6443",
//!  "identity": "/run/garboard/pki/dns", "resolvConf": "/etc/resolv.conf", "serviceCIDRs": ["10.96.0.0/12"],
//!  "podCIDRs": ["10.244.0.0/16"]}
//! ```
//! `upstreams` (`["10.0.2.3:53"]`) may stand in place of `resolvConf`. An empty `listen` means that the machine has no
//! address for pods yet.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use garboard_sys::config::{ConfigError, each};
use hickory_proto::rr::Name;
use http::Uri;
use ipnet::IpNet;
use serde::Deserialize;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to answer, by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, in lower case, fully qualified.
    pub domain: Name,
    /// The API server.
    pub server: Uri,
    /// The folder of the certificate for the API server.
    pub identity: PathBuf,
    /// Whom to ask about other names.
    pub upstreams: Upstreams,
    /// The networks of Services: their reverse names are answered here.
    pub service_cidrs: Vec<IpNet>,
    /// The networks of pods: their reverse names are answered here.
    pub pod_cidrs: Vec<IpNet>,
}

/// Who is asked about names outside of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// These servers.
    Servers(Vec<SocketAddr>),
    /// The servers of a resolv.conf(5) file, as it is at any time.
    ResolvConf(PathBuf),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    listen: Vec<String>,
    domain: String,
    server: String,
    identity: PathBuf,
    #[serde(default)]
    upstreams: Option<Vec<String>>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
    #[serde(rename = "serviceCIDRs", default)]
    service_cidrs: Vec<String>,
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Vec<String>,
}

impl Config {
    /// Reads and checks a file; `None` when there is none yet.
    ///
    /// # Errors
    /// When it cannot be read or used; the error names the field.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        garboard_sys::config::load(path, Self::parse)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// When it cannot be used; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let Document { listen, domain, server, identity, upstreams, resolv_conf, service_cidrs, pod_cidrs } =
            serde_json::from_str(text)?;
        let upstreams = match (upstreams, resolv_conf) {
            (Some(servers), None) => Upstreams::Servers(each("upstreams", &servers, "a server such as 10.0.2.3:53")?),
            (None, Some(path)) => Upstreams::ResolvConf(path),
            (Some(_), Some(_)) => {
                return Err(ConfigError::field("upstreams", "stands beside resolvConf; only one may"));
            }
            (None, None) => return Err(ConfigError::field("upstreams", "is missing, and resolvConf too")),
        };
        let mut name = Name::from_str(&domain)
            .ok()
            .filter(|name| name.num_labels() > 0)
            .ok_or_else(|| ConfigError::field("domain", format!("{domain:?} is not a domain name")))?
            .to_lowercase();
        name.set_fqdn(true);
        let server = server
            .parse()
            .ok()
            .filter(|server: &Uri| server.scheme().is_some() && server.authority().is_some())
            .ok_or_else(|| {
                ConfigError::field("server", format!("{server:?} is not a URL such as https://127.0.0.1:6443"))
            })?;
        Ok(Self {
            listen: each("listen", &listen, "an address such as 10.244.0.1:53")?,
            domain: name,
            server,
            identity,
            upstreams,
            service_cidrs: each("serviceCIDRs", &service_cidrs, "a network such as 10.96.0.0/12")?,
            pod_cidrs: each("podCIDRs", &pod_cidrs, "a network such as 10.244.0.0/16")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_configuration_is_understood() {
        let config = Config::parse(
            r#"{"listen": ["10.244.0.1:53", "[fd00::1]:53"], "domain": "Cluster.Local", "server": "https://[::1]:6443",
                "identity": "/pki/dns",
                "resolvConf": "/etc/resolv.conf", "serviceCIDRs": ["10.96.0.0/12"], "podCIDRs": ["10.244.0.0/16"]}"#,
        )
        .unwrap();
        assert_eq!(config.domain.to_string(), "cluster.local.");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.upstreams, Upstreams::ResolvConf("/etc/resolv.conf".into()));
    }

    #[test]
    fn each_error_names_its_field() {
        let cases = [
            (r#""listen": ["10.244.0.1"], "domain": "d", "server": "http://s", "upstreams": []"#, "listen[0]"),
            (r#""listen": [], "domain": ".", "server": "http://s", "upstreams": []"#, "domain"),
            (r#""listen": [], "domain": "d", "server": "s:6443", "upstreams": []"#, "server"),
            (r#""listen": [], "domain": "d", "server": "http://s""#, "upstreams"),
            (r#""listen": [], "domain": "d", "server": "http://s", "resolvConf": "/r", "upstreams": []"#, "upstreams"),
            (r#""listen": [], "domain": "d", "server": "http://s", "upstreams": ["x"]"#, "upstreams[0]"),
            (r#""listen": [], "domain": "d", "server": "http://s", "upstreams": [], "podCIDRs": ["x"]"#, "podCIDRs[0]"),
            (r#""listen": [], "domain": "d", "server": "http://s", "upstreams": [], "podCidrs": []"#, "podCidrs"),
            (r#""domain": "d", "server": "http://s", "upstreams": []"#, "listen"),
        ];
        for (fields, field) in cases {
            let error = anyhow::Error::new(Config::parse(&format!("{{{fields}, \"identity\": \"/i\"}}")).unwrap_err());
            assert!(format!("{error:#}").contains(field), "{fields}: {error:#}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = Config::parse(&text);
        }
    }
}
