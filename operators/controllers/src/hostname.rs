//! The machine's own name: the kernel's, and what `/etc/hosts` makes of it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use garboard_api::machine::HostEntry;

const KERNEL_HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Sets the kernel's host name (of the calling process's UTS namespace) if it differs.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or when the name is longer than 64 bytes.
pub fn set(hostname: &str) -> io::Result<bool> {
    let path = Path::new(KERNEL_HOSTNAME);
    if fs::read_to_string(path)?.trim_end() == hostname {
        return Ok(false);
    }
    fs::write(path, hostname)?;
    Ok(true)
}

/// The content of `/etc/hosts` (hosts(5)): loopback, the machine's name at its addresses, and what is declared.
pub fn hosts(hostname: &str, addresses: &[IpAddr], declared: &[HostEntry]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for address in addresses {
        let _ = writeln!(text, "{address} {hostname}");
    }
    if addresses.is_empty() {
        // Programs ask for the machine's own name before it has an address.
        let _ = writeln!(text, "127.0.1.1 {hostname}");
    }
    for HostEntry { address, names } in declared {
        let _ = writeln!(text, "{address} {}", names.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_always_has_an_address() {
        assert!(hosts("keel", &[], &[]).contains("\n127.0.1.1 keel\n"));
        let declared = [HostEntry { address: [192, 0, 2, 9].into(), names: vec!["nas".into(), "nas.example".into()] }];
        let text = hosts("keel", &[IpAddr::from([192, 0, 2, 7])], &declared);
        assert!(text.ends_with("\n192.0.2.9 nas nas.example\n"), "{text}");
        assert!(text.contains("\n192.0.2.7 keel\n") && !text.contains("127.0.1.1"));
    }
}
