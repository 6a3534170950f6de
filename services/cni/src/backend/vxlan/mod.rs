//! Tunnels between all machines of the cluster: one VXLAN link (RFC 7348), and for each peer what leads into it.
//!
//! | for each peer | tells |
//! |---|---|
//! | a route for each of its networks, by way of its address in the pod network | which machine has a pod |
//! | a permanent neighbour | which hardware address that machine has |
//! | an entry of the link's forwarding database (FDB) | which address of the underlay |
//!
//! All three follow from the peer's addresses (`address`), so machines exchange nothing: the link learns nothing, asks for no
//! neighbour and floods nothing. It has the zero address of this machine's own pod network, which the kernel takes as the
//! source of what the machine itself sends or masquerades to other machines' pods: a client of a node port whose pod is
//! elsewhere, for one. The answer finds its way back through the tunnel, where the machine's own address would take the
//! underlay, past the connection tracking of the machine that masqueraded.
//!
//! Checksums: all offloads stay at the kernel's defaults. What spoils a packet is the translation of one that is encapsulated while
//! its inner checksum is still to be computed. Without an outer checksum that was repaired in 5.7 (ea64d8d6c675, "netfilter: nat:
//! never update the UDP checksum when it's 0"); with one it still is so, and the firewall keeps translation from encapsulated
//! packets altogether ([`crate::firewall::tunnel`]). Inner packets that are masqueraded are right either way. A test sends both
//! between links that compute no checksums.
//!
//! The kernel's notifications wake [`Tunnels`]; what of ours they may have touched is observed, planned and repaired.

pub mod address;
mod desired;
mod interest;
mod kernel;
pub mod plan;
pub mod underlay;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use garboard_sys::netlink::{Netlink, Watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::desired::desire;
use self::interest::{Concern, Interest};
use self::kernel::{Applier, observe};
use self::plan::{Desired, ObservedTunnel, Step, plan};
use super::BackendError;
use super::settings::{ensure_setting, ensure_setting_if_there};
use crate::config::{Config, Vxlan};

/// The name of the link.
pub const LINK: &str = "gb-vxlan";
/// Mark of our routes (`rtm_protocol`): a number that neither `rtnetlink.h` nor a known routing daemon uses, and not the node
/// agent's, which removes what bears its own and is not declared.
pub const PROTOCOL: u8 = 104;
/// Shortest time between two looks at the kernel: what is changed together is seen together.
const PAUSE: Duration = Duration::from_millis(200);
/// Repairs that are told one by one; a link that was deleted makes thousands.
const TOLD: usize = 10;

/// The tunnels of this machine.
pub struct Tunnels {
    watch: Watch,
    interest: Interest,
    /// What may have changed since the last look.
    concern: Concern,
    /// What the last look was for; none when it failed.
    desired: Option<Desired>,
    /// Peers without a tunnel.
    direct: BTreeMap<IpAddr, u32>,
    looked: Instant,
}

impl Tunnels {
    /// Starts to watch the kernel.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn open(own: &Vxlan) -> Result<Self, BackendError> {
        Ok(Self {
            watch: Watch::open()?,
            interest: Interest { address: Some(own.address), routes: own.direct_routes, ..Interest::default() },
            concern: Concern::Nothing,
            desired: None,
            direct: BTreeMap::new(),
            looked: Instant::now(),
        })
    }

    /// Waits until something of the tunnels, or of the network that carries them, may not be as it was left. A call that is
    /// given up loses nothing.
    ///
    /// # Errors
    /// When the kernel can no longer be watched.
    pub async fn disturbed(&mut self) -> Result<(), BackendError> {
        while self.concern == Concern::Nothing {
            let change = self.watch.next().await?;
            self.concern = self.interest.concern(&change);
        }
        tokio::time::sleep_until(self.looked + PAUSE).await;
        while let Some(change) = self.watch.try_next() {
            self.concern = self.concern.max(self.interest.concern(&change));
        }
        Ok(())
    }

    /// Whether the network that carries the tunnels may have changed.
    pub fn underlay_changed(&self) -> bool {
        self.concern == Concern::Underlay
    }

    /// Makes the kernel hold what the configuration asks for, with this MTU in bytes. Repeating it changes nothing. Returns the
    /// first refusal that leaves single peers unreached; the others are served all the same.
    ///
    /// # Errors
    /// When no peer can be reached: the kernel cannot be asked or refuses the link, or a link of its name is somebody else's.
    pub async fn reconcile(
        &mut self,
        own: &Vxlan,
        config: &Config,
        mtu_bytes: u32,
    ) -> Result<Option<BackendError>, BackendError> {
        // A new one each time, so that one that failed is not kept.
        let mut netlink = Netlink::open()?;
        let concern = std::mem::replace(&mut self.concern, Concern::Nothing);
        self.looked = Instant::now();
        let (desired, drift) = match self.desired.take() {
            Some(before) if concern < Concern::Underlay => (before, true),
            before => {
                self.look_at_underlay(&mut netlink, own, config).await?;
                let desired = desire(own, config, mtu_bytes, &self.direct);
                // Steps towards what was there already are repairs.
                let drift = before.as_ref() == Some(&desired);
                (desired, drift)
            }
        };
        // What fails is looked at from the ground up the next time.
        self.interest.refused = true;
        let Outcome { tunnel, refused } = converge(&mut netlink, &desired, Some(own), drift).await?;
        self.interest.tunnel = tunnel;
        self.interest.refused = refused.is_some();
        self.desired = refused.is_none().then_some(desired);
        Ok(refused)
    }

    /// The next [`Self::reconcile`] looks at everything anew.
    pub fn peers_changed(&mut self) {
        self.desired = None;
    }

    async fn look_at_underlay(
        &mut self,
        netlink: &mut Netlink,
        own: &Vxlan,
        config: &Config,
    ) -> Result<(), BackendError> {
        let holder = underlay::holder(netlink, own.address).await?;
        self.direct = underlay::direct(netlink, own, &config.peers, self.interest.tunnel).await?;
        self.interest.underlay =
            holder.map(|link| link.index).into_iter().chain(self.direct.values().copied()).collect();
        Ok(())
    }
}

/// Removes the link and all routes that were made for it.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove() -> Result<(), BackendError> {
    let outcome = converge(&mut Netlink::open()?, &Desired::default(), None, false).await?;
    outcome.refused.map_or(Ok(()), Err)
}

/// What came of a look.
struct Outcome {
    /// Index of our link.
    tunnel: Option<u32>,
    /// The first refusal that concerns single peers.
    refused: Option<BackendError>,
}

/// Observes, plans and applies.
async fn converge(
    netlink: &mut Netlink,
    desired: &Desired,
    own: Option<&Vxlan>,
    drift: bool,
) -> Result<Outcome, BackendError> {
    let observed = observe(netlink, desired.tunnel.as_ref().map(|tunnel| tunnel.mac)).await?;
    let steps = plan(desired, &observed).map_err(|_| BackendError::Foreign(LINK.to_owned()))?;
    if let (Some(own), ObservedTunnel::Present { .. }) = (own, &observed.tunnel) {
        apply_settings(own)?;
    }
    let mut applier = Applier::new(netlink, &observed.tunnel);
    let mut refused = None;
    for (number, step) in steps.iter().enumerate() {
        match applier.apply(step).await {
            Ok(()) => {
                if let (Step::AddTunnel(_), Some(own)) = (step, own) {
                    apply_settings(own)?;
                }
                if drift && number < TOLD {
                    warn!(%step, "pod network repaired");
                } else {
                    debug!(%step, "pod network changed");
                }
            }
            Err(error) if step.is_for_all() => return Err(error),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match (steps.len(), drift) {
        (0, _) => {}
        (count, true) if count > TOLD => warn!(steps = count, "pod network repaired"),
        (_, true) => {}
        (count, false) => info!(steps = count, "connections to other machines changed"),
    }
    Ok(Outcome { tunnel: applier.tunnel(), refused })
}

/// Kernel settings of the link, and why.
fn apply_settings(own: &Vxlan) -> Result<(), BackendError> {
    // What comes through a tunnel must come from where the tunnel leads to. A machine that a peer reaches directly may reach that
    // peer through a tunnel only, where their networks' prefixes differ: then what comes need only come from somewhere.
    let source_check = if own.direct_routes { "2" } else { "1" };
    ensure_setting(&format!("ipv4/conf/{LINK}/rp_filter"), source_check)?;
    // Nobody at the other ends is a router or asks for addresses; a kernel may have no IPv6.
    for setting in ["accept_ra", "accept_dad"] {
        ensure_setting_if_there(&format!("ipv6/conf/{LINK}/{setting}"), "0")?;
    }
    Ok(())
}
