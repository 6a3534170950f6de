//! Announces a machine that waits on its links, so that it is found without anybody going to its console.

use std::fs;
use std::path::Path;

use garboard_machine_api::waiting::{Announcement, Announcer};
use garboard_machine_api::{DEFAULT_PORT, Pin};
use garboard_runtime::applier::chain;
use garboard_tpm::Tpm;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::claim::Claimants;

/// What the firmware says of the machine (Linux: Documentation/ABI/testing/sysfs-class-dmi).
const FIRMWARE: &str = "sys/class/dmi/id";
/// The machine's links.
const LINKS: &str = "sys/class/net";

/// Announces the machine while anybody may claim it, until `stop`.
pub async fn run(
    pin: Pin,
    version: String,
    tpm: Option<Tpm>,
    mut claimants: watch::Receiver<Claimants>,
    stop: CancellationToken,
) {
    let work = async {
        while claimants.wait_for(|claimants| *claimants == Claimants::Anybody).await.is_ok() {
            let endorsement_key = endorsement_key(tpm.clone()).await;
            let announcement = Announcement { endorsement_key, ..hardware(Path::new("/"), pin, &version) };
            let announcer = match Announcer::start(&announcement, DEFAULT_PORT) {
                Ok(announcer) => {
                    info!(?announcement, "announced as waiting");
                    Some(announcer)
                }
                // Its console tells where it is.
                Err(error) => {
                    warn!(error = chain(&error), "not announced as waiting");
                    None
                }
            };
            let ended = claimants.wait_for(|claimants| *claimants != Claimants::Anybody).await.is_err();
            drop(announcer);
            if ended {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    stop.run_until_cancelled(work).await;
}

/// Which TPM it has, if it has one that works.
async fn endorsement_key(tpm: Option<Tpm>) -> Option<Pin> {
    let tpm = tpm?;
    match spawn_blocking(move || tpm.endorsement_key()).await.ok()? {
        Ok(key) => Some(Pin::of_digest(key.digest())),
        Err(error) => {
            warn!(error = chain(&error), "announced without the TPM");
            None
        }
    }
}

/// What the machine is known by but for its TPM; `root` is `/`, or a copy of the files in tests.
fn hardware(root: &Path, pin: Pin, version: &str) -> Announcement {
    let firmware = |file: &str| text(&root.join(FIRMWARE).join(file));
    let links = fs::read_dir(root.join(LINKS)).into_iter().flatten().flatten().map(|entry| entry.path());
    // Only what hardware is behind has a device.
    let mut mac_addresses: Vec<_> =
        links.filter(|link| link.join("device").exists()).filter_map(|link| text(&link.join("address"))).collect();
    mac_addresses.sort_unstable();
    Announcement {
        pin,
        version: version.to_owned(),
        endorsement_key: None,
        mac_addresses,
        product: firmware("product_name"),
        serial_number: firmware("product_serial"),
        system_uuid: firmware("product_uuid").map(|uuid| uuid.to_lowercase()),
    }
}

/// A file of one line; none if it is not there or empty.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_firmware_and_its_hardware_links() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8051-B4C04F333632\n");
        write("sys/class/dmi/id/product_serial", "\n");
        write("sys/class/net/eth1/address", "52:54:00:00:00:02\n");
        write("sys/class/net/eth1/device/vendor", "");
        write("sys/class/net/eth0/address", "52:54:00:00:00:01\n");
        write("sys/class/net/eth0/device/vendor", "");
        write("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        let pin = Pin::of_public_key(b"key");
        let expected = Announcement {
            pin,
            version: "0.1.0".into(),
            endorsement_key: None,
            mac_addresses: vec!["52:54:00:00:00:01".into(), "52:54:00:00:00:02".into()],
            product: None,
            serial_number: None,
            system_uuid: Some("4c4c4544-0042-3510-8051-b4c04f333632".into()),
        };
        assert_eq!(hardware(root.path(), pin, "0.1.0"), expected);
    }
}
