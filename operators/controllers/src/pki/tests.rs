//! The store on a real file system. Giving files to other users needs root, as on the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use garboard_api::machine::MachineRole;
use garboard_plan::pki::{PkiInput, Reason, desired};
use garboard_sys::durable::power::Supply;
use garboard_tpm::testing::Emulator;
use rcgen::PublicKeyData;
use tempfile::TempDir;

use super::*;

fn profiles() -> Desired {
    desired(&PkiInput {
        role: MachineRole::ControlPlane,
        joins: false,
        node_name: "node-1".to_owned(),
        node_addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        service_addresses: vec!["10.96.0.1".parse().unwrap()],
        dns_domain: "cluster.local".to_owned(),
        apiserver_names: Vec::new(),
    })
}

fn store(folder: &TempDir) -> PkiStore {
    PkiStore::new(folder.path().join("state"), folder.path().join("run"))
}

/// In memory: what is synced again and again need not wait for a disk.
fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

#[test]
fn what_was_made_reads_back_as_what_was_wanted() {
    let folder = folder();
    let store = store(&folder);
    let first = store.reconcile(&profiles(), now()).unwrap();
    assert!(first.problems.is_empty());
    assert_eq!(store.reconcile(&profiles(), now()).unwrap(), Plan::default());
    let observed = store.observe().unwrap();
    for (leaf, profile) in profiles().leaves {
        let found = &observed.leaves[&leaf];
        assert_eq!(found.profile, profile, "{leaf:?}");
        assert!(found.signed_by_authority, "{leaf:?}");
    }
}

/// The authorities before what they have signed, so that nothing is signed twice that could be kept.
#[test]
fn a_power_cut_at_any_step_is_made_up_for_by_the_next_call() {
    let mut cuts = 0;
    loop {
        let folder = folder();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let supply = Supply::cut(&state, cuts);
        let outcome = store(&folder).reconcile(&profiles(), now());
        let gone = supply.has_gone();
        assert_eq!(outcome.is_err(), gone, "cut {cuts}");
        assert!(!gone || !folder.path().join("run").exists(), "cut {cuts}: what may be lost is in use");
        drop(supply);
        let kept = store(&folder).observe().unwrap();
        assert!(kept.leaves.values().all(|leaf| leaf.signed_by_authority), "cut {cuts}");
        let next = store(&folder).reconcile(&profiles(), now()).unwrap();
        let created = next.steps.iter().filter(|step| matches!(step, Step::CreateAuthority { .. })).count();
        assert_eq!(created + kept.authorities.len(), Authority::ALL.len(), "cut {cuts}");
        assert_eq!(store(&folder).reconcile(&profiles(), now()).unwrap(), Plan::default(), "cut {cuts}");
        if !gone {
            break;
        }
        cuts += 1;
    }
    let files = Authority::ALL.len() + Key::ALL.len() + Leaf::ALL.len();
    assert_eq!(cuts, 1 + 2 * files + 1, "before it, each content and each name, and the folder");
}

#[test]
fn keys_are_readable_by_their_user_alone() {
    let folder = folder();
    store(&folder).reconcile(&profiles(), now()).unwrap();
    for entry in fs::read_dir(folder.path().join("state")).unwrap() {
        let found = entry.unwrap().metadata().unwrap();
        assert_eq!((found.uid(), found.permissions().mode() & 0o7777), (0, 0o600));
    }
    for leaf in Leaf::ALL {
        let path = folder.path().join("run").join(leaf.name());
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.permissions().mode() & 0o077), (leaf.owner().id, 0), "{leaf:?}");
        let key = fs::metadata(path.join("tls.key")).unwrap();
        assert_eq!((key.uid(), key.permissions().mode() & 0o7777), (leaf.owner().id, 0o400), "{leaf:?}");
    }
}

#[test]
fn deployed_files_that_were_lost_or_changed_are_written_again_and_nothing_else() {
    let folder = folder();
    let store = store(&folder);
    store.reconcile(&profiles(), now()).unwrap();
    fs::write(folder.path().join("run/kubelet/tls.crt"), "").unwrap();
    fs::remove_dir_all(folder.path().join("run/kube-apiserver-keys")).unwrap();
    let plan = store.reconcile(&profiles(), now()).unwrap();
    assert_eq!(plan.steps, [Step::Deploy(Deployment::Leaf(Leaf::Kubelet)), Step::Deploy(Deployment::ApiserverKeys)]);
    assert_eq!(store.reconcile(&profiles(), now()).unwrap(), Plan::default());
}

#[test]
fn a_damaged_certificate_is_issued_again() {
    let folder = folder();
    let store = store(&folder);
    store.reconcile(&profiles(), now()).unwrap();
    let file = folder.path().join("state/kube-proxy.pem");
    let half = fs::read_to_string(&file).unwrap()[..300].to_owned();
    fs::write(&file, half).unwrap();
    let plan = store.reconcile(&profiles(), now()).unwrap();
    assert!(matches!(plan.steps[0], Step::Issue { leaf: Leaf::KubeProxy, reason: Reason::Missing, .. }));
}

#[test]
fn a_damaged_authority_is_an_error_and_is_kept() {
    let folder = folder();
    let store = store(&folder);
    store.reconcile(&profiles(), now()).unwrap();
    let file = folder.path().join("state/kubernetes-ca.pem");
    fs::write(&file, "damaged").unwrap();
    assert!(matches!(store.reconcile(&profiles(), now()), Err(PkiError::Authority { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "damaged");
}

#[test]
fn renewal_changes_the_certificate_and_keeps_the_authority() {
    let folder = folder();
    let store = store(&folder);
    store.reconcile(&profiles(), now()).unwrap();
    let authority = store.authority_certificate(Authority::Kubernetes).unwrap();
    let before = fs::read_to_string(folder.path().join("run/kubelet/tls.crt")).unwrap();
    let later = plan::next_renewal(&store.observe().unwrap()).unwrap();
    store.reconcile(&profiles(), later).unwrap();
    assert_ne!(fs::read_to_string(folder.path().join("run/kubelet/tls.crt")).unwrap(), before);
    assert_eq!(store.authority_certificate(Authority::Kubernetes).unwrap(), authority);
}

#[test]
fn the_authority_that_is_declared_last_is_trusted_until_the_keys_of_one_are_here() {
    let folders = [folder(), folder(), folder()];
    let [first, second, joiner] = folders.each_ref().map(store);
    for founder in [&first, &second] {
        founder.reconcile(&profiles(), now()).unwrap();
        joiner.trust(&founder.authority_certificate(Authority::Kubernetes).unwrap()).unwrap();
        let pins = [&joiner, founder].map(|store| store.authority_pin(Authority::Kubernetes).unwrap());
        assert_eq!(pins[0], pins[1]);
    }
    let keys = second.cluster_keys().unwrap();
    joiner.take_cluster_keys(&keys).unwrap();
    let refused = joiner.trust(&first.authority_certificate(Authority::Kubernetes).unwrap());
    assert!(matches!(refused, Err(PkiError::Foreign(_))), "{refused:?}");
    assert_eq!(joiner.cluster_keys().unwrap(), keys);
}

#[test]
fn a_client_certificate_names_its_user_and_group_and_needs_no_private_key() {
    let folder = folder();
    let store = store(&folder);
    store.reconcile(&profiles(), now()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = store
        .sign_client(&key.subject_public_key_info(), "alice", "garboard:admins", Duration::from_secs(3600), now())
        .unwrap();
    let signer = store.signer(Authority::Kubernetes).unwrap();
    let found = read::leaf(&(pem + &key.serialize_pem()), Some(&signer)).unwrap();
    assert!(found.signed_by_authority);
    assert_eq!(found.profile.common_name, "alice");
    assert_eq!(found.profile.organization.as_deref(), Some("garboard:admins"));
    assert!(found.profile.client && !found.profile.server);
    assert_eq!(found.validity.not_after, now() + Duration::from_secs(3600));
}

fn key_of(folder: &TempDir, leaf: Leaf) -> String {
    fs::read_to_string(folder.path().join("run").join(leaf.name()).join("tls.key")).unwrap()
}

#[test]
fn the_agents_key_is_in_the_tpm_and_the_others_are_files() {
    let (folder, emulator) = (folder(), Emulator::start().unwrap());
    let store = store(&folder).with_tpm(Some(emulator.tpm()));
    store.reconcile(&profiles(), now()).unwrap();
    assert_eq!(store.identity_key().unwrap(), Some(IdentityKey::Tpm));
    for leaf in Leaf::ALL {
        assert_eq!(TpmKey::is_in(&key_of(&folder, leaf)), leaf == Leaf::Agent, "{leaf:?}");
    }
    let found = &store.observe().unwrap().leaves[&Leaf::Agent];
    assert_eq!(found.profile, profiles().leaves[&Leaf::Agent]);
    assert!(found.signed_by_authority);
    assert_eq!(store.reconcile(&profiles(), now()).unwrap(), Plan::default());
}

#[test]
fn a_key_of_another_tpm_or_of_none_is_lost_and_made_again() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    for (tpm, kept_in) in [(Some(other.tpm()), IdentityKey::Tpm), (None, IdentityKey::File)] {
        let folder = folder();
        let before = store(&folder).with_tpm(Some(one.tpm()));
        before.reconcile(&profiles(), now()).unwrap();
        assert!(!before.has_lost(Leaf::Agent).unwrap());
        let after = store(&folder).with_tpm(tpm);
        assert!(after.has_lost(Leaf::Agent).unwrap());
        let plan = after.reconcile(&profiles(), now()).unwrap();
        assert!(matches!(plan.steps[0], Step::Issue { leaf: Leaf::Agent, reason: Reason::Missing, .. }), "{plan:?}");
        assert_eq!(after.identity_key().unwrap(), Some(kept_in));
        assert!(!after.has_lost(Leaf::Agent).unwrap());
        assert_eq!(after.reconcile(&profiles(), now()).unwrap(), Plan::default());
    }
}

#[test]
fn a_tpm_that_fails_costs_no_key_and_one_that_makes_none_is_done_without() {
    let (with_key, without) = (folder(), folder());
    let emulator = Emulator::start().unwrap();
    let broken = emulator.tpm();
    store(&with_key).with_tpm(Some(broken.clone())).reconcile(&profiles(), now()).unwrap();
    drop(emulator);
    let kept = store(&with_key).with_tpm(Some(broken.clone()));
    assert!(!kept.has_lost(Leaf::Agent).unwrap());
    assert_eq!(kept.reconcile(&profiles(), now()).unwrap(), Plan::default());
    let made = store(&without).with_tpm(Some(broken));
    made.reconcile(&profiles(), now()).unwrap();
    assert_eq!(made.identity_key().unwrap(), Some(IdentityKey::File));
}

#[test]
fn requests_are_for_one_key_as_long_as_the_tpm_has_it() {
    let folder = folder();
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let profile = &profiles().leaves[&Leaf::Agent];
    let request = |tpm: Tpm| store(&folder).with_tpm(Some(tpm)).kept_request(Leaf::Agent, profile);
    let first = request(one.tpm()).unwrap();
    assert!(TpmKey::is_in(&first.key_pem));
    assert_eq!(request(one.tpm()).unwrap().key_pem, first.key_pem);
    let gone = one.tpm();
    drop(one);
    assert!(matches!(request(gone), Err(PkiError::Issue { .. })));
    let next = request(other.tpm()).unwrap();
    assert!(TpmKey::is_in(&next.key_pem) && next.key_pem != first.key_pem);
    assert_eq!(request(other.tpm()).unwrap().key_pem, next.key_pem);
}
