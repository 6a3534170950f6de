//! WireGuard links in the kernel, and their private keys, which are made here and kept on the state partition.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use garboard_api::machine::WireguardStatus;
use garboard_catalog::users;
use garboard_plan::network as plan;
use garboard_runtime::applier::chain;
use garboard_sys::durable;
use garboard_sys::netlink::{NetlinkError, PrivateKey, PublicKey, WireguardChange, WireguardLinks, WireguardPeer};
use ring::rand::{SecureRandom, SystemRandom};
use tracing::info;

use crate::pki::FileError;
use crate::pki::files::{self, make_folder, replace};

/// Time after which a peer that has not proved its key again is not heard any more (`REJECT_AFTER_TIME` of the protocol).
const HEARD: Duration = Duration::from_secs(180);

/// Why a WireGuard link is not as declared.
#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    /// The kernel refuses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Its key could not be read or kept.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel gave no random bytes.
    #[error("there are no random bytes for a key")]
    Random,
    /// What is kept is no key. It is not replaced, because peers know the link by it.
    #[error("{} holds no key", .0.display())]
    Damaged(PathBuf),
    /// The declared key of a peer is none; validation lets none through.
    #[error("{0:?} is no key")]
    Peer(String),
}

/// The folder of private keys, a file for each link; it is made with the first.
#[derive(Debug)]
struct Keys(PathBuf);

impl Keys {
    fn file(&self, link: &str) -> PathBuf {
        self.0.join(format!("{link}.key"))
    }

    /// The key of a link, if it has ever had one.
    fn find(&self, link: &str) -> Result<Option<PrivateKey>, WireguardError> {
        let file = self.file(link);
        let Some(text) = files::read(&file)? else { return Ok(None) };
        let key = BASE64_STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        key.map(|key| Some(PrivateKey(key))).ok_or(WireguardError::Damaged(file))
    }

    /// The key of a link, which is made when there is none.
    fn ensure(&self, link: &str) -> Result<PrivateKey, WireguardError> {
        if let Some(key) = self.find(link)? {
            return Ok(key);
        }
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| WireguardError::Random)?;
        // As the kernel keeps it (RFC 7748, section 5).
        key[0] &= 248;
        key[31] = (key[31] & 127) | 64;
        make_folder(&self.0, users::ROOT, 0o700)?;
        // In the form of `wg genkey`.
        replace(&self.file(link), &format!("{}\n", BASE64_STANDARD.encode(key)), users::ROOT, 0o600)?;
        if let Some(parent) = self.0.parent() {
            durable::sync_folder(parent).map_err(FileError::from)?;
        }
        Ok(PrivateKey(key))
    }
}

/// What keeps links as declared in what they know.
#[derive(Debug)]
pub struct Keeper {
    keys: Keys,
    /// The links that are declared and there.
    links: Vec<String>,
}

impl Keeper {
    /// With private keys in a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { keys: Keys(folder.into()), links: Vec::new() }
    }

    /// Whether there are links to look at.
    pub fn is_in_use(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether somebody has changed what a link knows. What cannot be seen was told as a problem, and is tried again anyway.
    pub fn has_drifted(&self, config: &plan::Config) -> bool {
        self.observe().is_ok_and(|known| !plan::plan_wireguard(config, &known).is_empty())
    }

    /// Has those of `links` know what is declared. Returns what to tell of them, and what failed.
    pub fn keep(&mut self, config: &plan::Config, links: &[plan::Link]) -> (Vec<WireguardStatus>, Vec<String>) {
        let is_there = |name: &str| {
            let ours = |link: &plan::Link| link.ours && link.settings == Some(plan::Settings::Wireguard);
            links.iter().any(|link| link.name == name && ours(link))
        };
        let declared = plan::wireguard_links(config).map(|(name, _)| name.to_owned());
        self.links = declared.filter(|name| is_there(name)).collect();
        let mut problems = Vec::new();
        let known = self.observe().and_then(|known| {
            let steps = plan::plan_wireguard(config, &known);
            if steps.is_empty() {
                return Ok(known);
            }
            for step in steps {
                match self.apply(&step) {
                    Ok(()) => info!(step = %step, "changed"),
                    Err(error) => problems.push(chain(&error)),
                }
            }
            self.observe()
        });
        let known = known.unwrap_or_else(|error| {
            problems.push(chain(&error));
            Vec::new()
        });
        (plan::wireguard_status(&known), problems)
    }

    /// What the links know. Nothing is asked of the kernel where there is none.
    fn observe(&self) -> Result<Vec<plan::WireguardLink>, WireguardError> {
        if self.links.is_empty() {
            return Ok(Vec::new());
        }
        let (kernel, now) = (WireguardLinks::open()?, SystemTime::now());
        let mut found = Vec::new();
        for name in &self.links {
            let link = match kernel.get(name) {
                Err(error) if error.is_missing() => continue,
                link => link?,
            };
            let key = self.keys.find(name)?;
            found.push(plan::WireguardLink {
                name: name.clone(),
                has_key: key.is_some() && link.private_key == key,
                public_key: link.public_key.map(|key| BASE64_STANDARD.encode(key)),
                listen_port: link.listen_port,
                peers: link.peers.into_iter().map(|peer| observed(peer, now)).collect(),
            });
        }
        Ok(found)
    }

    fn apply(&self, step: &plan::WireguardStep) -> Result<(), WireguardError> {
        let (link, change) = match step {
            plan::WireguardStep::SetKey(link) => (link, WireguardChange::PrivateKey(self.keys.ensure(link)?)),
            plan::WireguardStep::SetPort(link, port) => (link, WireguardChange::ListenPort(*port)),
            plan::WireguardStep::RemovePeer(link, key) => (link, WireguardChange::RemovePeer(public_key(key)?)),
            plan::WireguardStep::SetPeer(link, peer) => {
                let plan::Peer { public_key: key, endpoint, keepalive_seconds, allowed } = peer.clone();
                let public_key = public_key(&key)?;
                (link, WireguardChange::Peer { public_key, endpoint, keepalive_seconds, allowed })
            }
        };
        Ok(WireguardLinks::open()?.change(link, &change)?)
    }
}

fn observed(peer: WireguardPeer, now: SystemTime) -> plan::ObservedPeer {
    let WireguardPeer { public_key, endpoint, keepalive_seconds, allowed, handshake } = peer;
    // A clock that was set back since makes nobody silent.
    let heard = handshake.is_some_and(|last| now.duration_since(last).is_ok_and(|since| since < HEARD) || last > now);
    let public_key = BASE64_STANDARD.encode(public_key);
    plan::ObservedPeer { peer: plan::Peer { public_key, endpoint, keepalive_seconds, allowed }, heard }
}

fn public_key(text: &str) -> Result<PublicKey, WireguardError> {
    let key = BASE64_STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| WireguardError::Peer(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_root_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let keys = Keys(root.path().join("wireguard"));
        assert_eq!(keys.find("wg0").unwrap(), None);
        let key = keys.ensure("wg0").unwrap();
        assert_eq!((keys.find("wg0").unwrap(), keys.ensure("wg0").unwrap()), (Some(key.clone()), key.clone()));
        assert_ne!(keys.ensure("wg1").unwrap(), key);
        assert_eq!((key.0[0] & 7, key.0[31] & 192), (0, 64), "as the kernel keeps it");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys.0), mode(&keys.file("wg0"))), (0o700, 0o600));
    }

    #[test]
    fn a_damaged_key_is_told_and_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let keys = Keys(root.path().to_owned());
        fs::write(keys.file("wg0"), "AAAA").unwrap();
        let told = keys.ensure("wg0").unwrap_err().to_string();
        assert!(told.ends_with("wg0.key holds no key"), "{told}");
        assert_eq!(fs::read_to_string(keys.file("wg0")).unwrap(), "AAAA");
    }

    #[test]
    fn a_peer_is_heard_for_three_minutes() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |seconds: u64| now - Duration::from_secs(seconds);
        let cases = [
            (None, false),
            (Some(ago(0)), true),
            (Some(ago(179)), true),
            (Some(ago(180)), false),
            (Some(now + Duration::from_secs(9)), true),
        ];
        for (handshake, heard) in cases {
            let peer = WireguardPeer {
                public_key: [0; 32],
                endpoint: None,
                keepalive_seconds: 0,
                allowed: Vec::new(),
                handshake,
            };
            assert_eq!(observed(peer, now).heard, heard, "{handshake:?}");
        }
    }

    #[test]
    fn keys_of_peers_are_those_that_validation_lets_through() {
        assert_eq!(public_key(&BASE64_STANDARD.encode([7; 32])).unwrap(), [7; 32]);
        for wrong in ["", "AAAA", "keel"] {
            assert!(public_key(wrong).is_err(), "{wrong}");
        }
    }
}
