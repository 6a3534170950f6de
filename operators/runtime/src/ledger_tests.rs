use garboard_api::Machine;
use garboard_sys::durable::power::Supply;
use proptest::prelude::*;

use super::*;

fn entry(max_pods: u32) -> Entry<Machine> {
    let mut object = Machine::new("node-1", Default::default());
    object.spec.kubelet.max_pods = Some(max_pods);
    Entry { object, local_digest: Some(digest(b"x")), pending: true }
}

#[test]
fn what_is_stored_is_loaded_and_private() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("ledger"));
    assert_eq!(ledger.load::<Machine>().unwrap(), None);
    assert!(!ledger.holds::<Machine>());
    for max_pods in 1..4 {
        ledger.store(&entry(max_pods)).unwrap();
        assert_eq!(ledger.load().unwrap(), Some(entry(max_pods)));
        assert!(ledger.holds::<Machine>());
    }
    for (path, mode) in [("ledger", 0o700), ("ledger/machine.json", 0o600), ("ledger/machine.previous.json", 0o600)] {
        let found = fs::metadata(folder.path().join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{path}");
    }
}

#[test]
fn what_is_forgotten_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("ledger"));
    let other = ledger.clone();
    ledger.store(&entry(1)).unwrap();
    ledger.forget().unwrap();
    assert_eq!(ledger.load::<Machine>().unwrap(), None);
    assert!(matches!(other.store(&entry(2)), Err(LedgerError::Closed(_))));
    assert!(!other.holds::<Machine>());
}

#[test]
fn a_digest_is_that_of_sha256() {
    assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn a_power_cut_at_any_step_of_writing_leaves_the_old_or_the_new() {
    let mut cuts = 0;
    loop {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let ledger = Ledger::new(folder.path());
        ledger.store(&entry(1)).unwrap();
        ledger.store(&entry(2)).unwrap();
        let supply = Supply::cut(folder.path(), cuts);
        let stored = ledger.store(&entry(3));
        let gone = supply.has_gone();
        drop(supply);
        let found = ledger.load().unwrap().unwrap();
        assert!(found == entry(3) || gone && found == entry(2), "cut {cuts}: {found:?}");
        assert_eq!(stored.is_err(), gone, "cut {cuts}");
        ledger.store(&entry(4)).unwrap();
        assert_eq!(ledger.load().unwrap(), Some(entry(4)));
        if !gone {
            break;
        }
        cuts += 1;
    }
    assert_eq!(cuts, 6, "content, the one before twice, name, folder, and before all of it");
}

#[test]
fn damage_to_both_files_is_an_error_and_not_an_empty_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    ledger.store(&entry(1)).unwrap();
    ledger.store(&entry(2)).unwrap();
    for name in ["machine.json", "machine.previous.json"] {
        fs::write(folder.path().join(name), b"").unwrap();
    }
    assert!(matches!(ledger.load::<Machine>(), Err(LedgerError::Damaged { .. })));
    ledger.store(&entry(3)).unwrap();
    assert_eq!(ledger.load().unwrap(), Some(entry(3)));
}

proptest! {
    #[test]
    fn a_truncated_or_changed_file_gives_the_one_before(cut in any::<proptest::sample::Index>(), flip in 0u8..=255) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path());
        ledger.store(&entry(1)).unwrap();
        ledger.store(&entry(2)).unwrap();
        let path = folder.path().join("machine.json");
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let at = cut.index(whole.len());
        match flip {
            0 => damaged.truncate(at),
            flip => damaged[at] ^= flip,
        }
        fs::write(&path, &damaged).unwrap();
        prop_assert_eq!(ledger.load().unwrap(), Some(entry(1)));
        // And the damaged one never becomes the one before.
        ledger.store(&entry(3)).unwrap();
        fs::write(&path, b"").unwrap();
        prop_assert_eq!(ledger.load().unwrap(), Some(entry(1)));
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode::<Entry<Machine>>(&bytes).is_none());
    }
}
