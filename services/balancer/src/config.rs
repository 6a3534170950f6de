//! The configuration file.
//!
//! ```json
//! {"servers": ["127.0.0.1:6443", "192.0.2.11:6443"]}
//! ```
//! The servers are preferred in the order that they have here.

use std::net::SocketAddr;
use std::path::Path;

use garboard_sys::config::{ConfigError, each};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    servers: Vec<String>,
}

/// The API servers of a file; none when there is no file yet.
///
/// # Errors
/// When it cannot be read or used; the error names the field.
pub fn load(path: &Path) -> Result<Vec<SocketAddr>, ConfigError> {
    Ok(garboard_sys::config::load(path, parse)?.unwrap_or_default())
}

fn parse(text: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let Document { servers } = serde_json::from_str(text)?;
    each("servers", &servers, "an address such as 192.0.2.11:6443")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_in_their_order() {
        let servers = parse(r#"{"servers": ["127.0.0.1:6443", "[fd00::1]:6443"]}"#).unwrap();
        assert_eq!(servers, ["127.0.0.1:6443".parse().unwrap(), "[fd00::1]:6443".parse().unwrap()]);
    }

    #[test]
    fn each_error_names_its_field() {
        let cases = [
            (r#"{"servers": ["127.0.0.1:1", "api"]}"#, r#"servers[1]: "api" is not an address"#),
            (r#"{"servers": [], "listen": 1}"#, "listen"),
            ("{}", "servers"),
        ];
        for (text, problem) in cases {
            let error = match parse(text).unwrap_err() {
                ConfigError::Syntax(error) => error.to_string(),
                error => error.to_string(),
            };
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn without_a_file_there_are_no_servers() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(&folder.path().join("config.json")).unwrap().is_empty());
    }
}
