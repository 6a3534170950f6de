//! Manifests that a hypervisor or a board hands over through the firmware: QEMU's fw_cfg and SMBIOS strings.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use garboard_api::manifest::MAX_BYTES;
use garboard_runtime::local::{LocalError, Problem, Raw};

/// The entry of fw_cfg (QEMU: docs/specs/fw_cfg.rst; names below `opt/` are the user's).
const FW_CFG: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/dev.garboard/manifests/raw";
/// All SMBIOS structures (Linux: Documentation/ABI/testing/sysfs-firmware-dmi-tables).
const SMBIOS: &str = "sys/firmware/dmi/tables/DMI";
/// What an SMBIOS string of type 11 (SMBIOS specification 3.7, 7.12: OEM strings) begins with.
const OEM_STRING: &str = "dev.garboard.manifests=";

/// What the firmware hands over; `root` is `/`, or a copy of the files in tests.
pub fn find(root: &Path) -> (Vec<Raw>, Vec<LocalError>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    let origin = "fw_cfg opt/dev.garboard/manifests";
    match fs::read(root.join(FW_CFG)) {
        Ok(bytes) => found.push(Raw { origin: origin.to_owned(), bytes }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => errors.push(unreadable(origin, &error)),
    }
    // A machine without SMBIOS has no such file, and then no strings.
    let tables = fs::read(root.join(SMBIOS)).unwrap_or_default();
    for (index, text) in oem_strings(&tables).into_iter().filter_map(|text| text.strip_prefix(OEM_STRING)).enumerate() {
        let origin = format!("SMBIOS string {} {OEM_STRING}", index + 1);
        // Three quarters of the text are left.
        if text.len() / 4 * 3 > MAX_BYTES {
            errors.push(unreadable(&origin, &format!("more than {MAX_BYTES} bytes")));
            continue;
        }
        match STANDARD.decode(text.trim()) {
            Ok(bytes) => found.push(Raw { origin, bytes }),
            Err(error) => errors.push(unreadable(&origin, &format!("manifest: not base64: {error}"))),
        }
    }
    (found, errors)
}

fn unreadable(origin: &str, error: &dyn std::fmt::Display) -> LocalError {
    LocalError { origin: origin.to_owned(), problem: Problem::Unreadable(error.to_string()) }
}

/// The OEM strings in a table of SMBIOS structures. Each structure is a header (type, length of its formatted part,
/// handle), the rest of that part, and strings that end with a zero byte each and with another after the last.
fn oem_strings(table: &[u8]) -> Vec<&str> {
    const OEM_STRINGS: u8 = 11;
    const END: u8 = 127;
    let mut strings = Vec::new();
    let mut rest = table;
    while let [type_, length, _, _, ..] = rest {
        let Some(mut texts) = rest.get(usize::from(*length)..).filter(|_| *length >= 4 && *type_ != END) else { break };
        // No string at all is two zero bytes.
        if let [0, 0, after @ ..] = texts {
            rest = after;
            continue;
        }
        loop {
            let Some(end) = texts.iter().position(|byte| *byte == 0) else { return strings };
            let (text, after) = texts.split_at(end);
            texts = after.get(1..).unwrap_or_default();
            if text.is_empty() {
                break;
            }
            if *type_ == OEM_STRINGS {
                strings.extend(std::str::from_utf8(text));
            }
        }
        rest = texts;
    }
    strings
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn structure(type_: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![type_, u8::try_from(4 + formatted.len()).unwrap(), 1, 0];
        bytes.extend(formatted);
        for string in strings {
            bytes.extend(string.bytes());
            bytes.push(0);
        }
        bytes.push(0);
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes
    }

    #[test]
    fn manifests_are_found_in_both_places_and_damage_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path()), (vec![], vec![]));
        for file in [FW_CFG, SMBIOS] {
            fs::create_dir_all(root.path().join(file).parent().unwrap()).unwrap();
        }
        fs::write(root.path().join(FW_CFG), "kind: A").unwrap();
        let table = [
            structure(1, &[7; 20], &["QEMU", "Standard PC"]),
            structure(2, &[], &[]),
            structure(11, &[3], &["other=1", "dev.garboard.manifests=a2luZDogQgo=", "dev.garboard.manifests=!"]),
            structure(127, &[], &[]),
            structure(11, &[1], &["dev.garboard.manifests=a2luZDogQwo="]),
        ]
        .concat();
        fs::write(root.path().join(SMBIOS), table).unwrap();
        let (found, errors) = find(root.path());
        let texts: Vec<_> = found.iter().map(|raw| String::from_utf8_lossy(&raw.bytes).into_owned()).collect();
        assert_eq!(texts, ["kind: A", "kind: B\n"]);
        assert!(errors.len() == 1 && errors[0].to_string().contains("base64"), "{errors:?}");
    }

    proptest! {
        #[test]
        fn any_table_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            oem_strings(&bytes);
        }

        #[test]
        fn every_string_is_found(texts in proptest::collection::vec("[a-z=]{1,20}", 0..5), others in proptest::collection::vec("[a-z]{1,9}", 0..3)) {
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            let others: Vec<_> = others.iter().map(String::as_str).collect();
            let table = [structure(1, &[9], &others), structure(11, &[1], &texts), structure(127, &[], &[])].concat();
            prop_assert_eq!(oem_strings(&table), texts);
        }
    }
}
