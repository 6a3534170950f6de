//! `/etc/resolv.conf` (resolv.conf(5)).

use std::fmt::Write;
use std::net::IpAddr;

/// The C libraries use no more name servers than this, and kubelet warns about the rest.
pub const MAX_NAMESERVERS: usize = 3;

/// The content of `/etc/resolv.conf` for name servers in order of preference and search domains.
pub fn resolv_conf(nameservers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::from("# Written by Garboard from the Machine resource and the DHCP leases.\n");
    for server in nameservers.iter().take(MAX_NAMESERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_beyond_the_third_are_left_out() {
        let servers: Vec<IpAddr> = (1..=5).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let text = resolv_conf(&servers, &["example.org".to_owned(), "example.net".to_owned()]);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3", "search example.org example.net"]
        );
    }

    #[test]
    fn nothing_known_makes_an_empty_file() {
        assert!(resolv_conf(&[], &[]).lines().all(|line| line.starts_with('#')));
    }
}
