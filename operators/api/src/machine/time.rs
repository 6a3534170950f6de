//! Time of day of a machine.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::HOST;

/// Where a machine has its time of day from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.servers) || self.servers.all(s, !s.contains(':') || isIP(s))")
    .message("each of servers is a DNS name or an IP address"))]
pub struct MachineTime {
    /// NTP servers, by name or address. All are asked, up to four addresses of a name, and the time counts on which more than half of
    /// those that answer agree: three or more withstand one that is wrong. Default: those that DHCP names (option 42); if there are none
    /// either, the clock is left to the hardware.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 253), regex(pattern = HOST)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub servers: Vec<String>,
}

/// The server whose time a machine follows.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimeStatus {
    /// The server, as declared or as DHCP names it.
    pub server: String,
    /// Its distance from a reference clock: 1 has one.
    pub stratum: u8,
    /// By how much the machine's clock was behind it when it was asked last, milliseconds; negative: ahead.
    pub offset_milliseconds: i64,
}
