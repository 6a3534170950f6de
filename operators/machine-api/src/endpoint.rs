//! Where a machine is reached.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The machine API's port.
pub const DEFAULT_PORT: u16 = 7443;

/// A host (a name or an address) and a port, written `HOST`, `HOST:PORT` or `[IPV6]:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST, HOST:PORT or [IPV6]:PORT")]
pub struct InvalidEndpoint(String);

impl Endpoint {
    /// Reads an endpoint whose port is `port` unless the text has one.
    ///
    /// # Errors
    /// When the text is none.
    pub fn with_default_port(text: &str, port: u16) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.to_owned(), port });
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
            host.parse::<Ipv6Addr>().map_err(|_| invalid())?;
            let port = match rest.strip_prefix(':') {
                Some(number) => number_of(number).ok_or_else(invalid)?,
                None if rest.is_empty() => port,
                None => return Err(invalid()),
            };
            return Ok(Self { host: host.to_owned(), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, number)) => (host, number_of(number).ok_or_else(invalid)?),
            None => (text, port),
        };
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(valid) {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn number_of(text: &str) -> Option<u16> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::with_default_port(text, DEFAULT_PORT)
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoints_read_as_people_write_them() {
        for (text, canonical) in [
            ("node-1", "node-1:7443"),
            ("127.0.0.1", "127.0.0.1:7443"),
            ("127.0.0.1:17443", "127.0.0.1:17443"),
            ("::1", "[::1]:7443"),
            ("[::1]", "[::1]:7443"),
            ("[fe80::1]:1", "[fe80::1]:1"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", ":1", "a:", "a:0", "a:65536", "a:+1", "https://a", "a b", "[::1", "[::1]x", "[a]:1", "a:1:2"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_reads_back(text in "[a-z0-9.:\\[\\]-]{0,20}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        }
    }
}
