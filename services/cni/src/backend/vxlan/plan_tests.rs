//! What holds of every plan, against a model of the kernel.

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(text: &str) -> RouteKey {
    RouteKey { destination: text.parse().unwrap(), metric: 0 }
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

fn tunnel(vni: u32, mtu_bytes: u32) -> Tunnel {
    Tunnel { vxlan: Vxlan::told(vni, ip("192.0.2.10"), 4789), mac: mac(10), mtu_bytes }
}

fn present(tunnel: &Tunnel) -> ObservedTunnel {
    let Tunnel { vxlan, mac, mtu_bytes } = tunnel.clone();
    ObservedTunnel::Present { index: 5, vxlan: Some(vxlan), marked: true, mac: Some(mac), mtu_bytes, up: true }
}

/// One peer.
fn desired() -> Desired {
    Desired {
        tunnel: Some(tunnel(1, 1450)),
        addresses: BTreeSet::from(["10.244.0.0/32".parse().unwrap()]),
        neighbours: BTreeMap::from([(ip("10.244.1.0"), mac(11))]),
        forwards: BTreeMap::from([(mac(11), ip("192.0.2.11"))]),
        routes: BTreeMap::from([(key("10.244.1.0/24"), Hop::Tunnel(ip("10.244.1.0")))]),
    }
}

/// The kernel when it holds that.
fn reached(desired: &Desired) -> Observed {
    let Desired { tunnel, addresses, neighbours, forwards, routes } = desired.clone();
    Observed {
        tunnel: tunnel.as_ref().map_or(ObservedTunnel::Absent, present),
        addresses,
        neighbours,
        forwards: forwards.into_iter().map(|(mac, remote)| (mac, Some(remote))).collect(),
        routes: routes.into_iter().collect(),
    }
}

fn steps(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed).unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn each_difference_has_its_steps() {
    type Change = fn(&mut Desired, &mut Observed);
    let cases: [(&str, Change, &[&str]); 15] = [
        ("nothing differs", |_, _| {}, &[]),
        (
            "nothing is there",
            |_, observed| *observed = Observed::default(),
            &[
                "add link gb-vxlan (network 1)",
                "configure link gb-vxlan (02:00:00:00:00:0a, MTU 1450)",
                "add address 10.244.0.0/32",
                "add forward of 02:00:00:00:00:0b to 192.0.2.11",
                "set neighbour 10.244.1.0 (02:00:00:00:00:0b)",
                "add route to 10.244.1.0/24 through the tunnel to 10.244.1.0",
            ],
        ),
        ("nothing is wanted", |desired, _| *desired = Desired::default(), &["remove link gb-vxlan (5)"]),
        (
            "another network",
            |_, observed| observed.tunnel = present(&tunnel(2, 1450)),
            &[
                "remove link gb-vxlan (5)",
                "add link gb-vxlan (network 1)",
                "configure link gb-vxlan (02:00:00:00:00:0a, MTU 1450)",
                "add address 10.244.0.0/32",
                "add forward of 02:00:00:00:00:0b to 192.0.2.11",
                "set neighbour 10.244.1.0 (02:00:00:00:00:0b)",
                "add route to 10.244.1.0/24 through the tunnel to 10.244.1.0",
            ],
        ),
        (
            "another MTU",
            |desired, _| desired.tunnel = Some(tunnel(1, 1350)),
            &["configure link gb-vxlan (02:00:00:00:00:0a, MTU 1350)"],
        ),
        (
            "a stray address",
            |_, observed| observed.addresses.extend(["10.9.9.9/32".parse::<IpNet>().unwrap()]),
            &["remove address 10.9.9.9/32"],
        ),
        (
            "no route",
            |_, observed| observed.routes.clear(),
            &["add route to 10.244.1.0/24 through the tunnel to 10.244.1.0"],
        ),
        (
            "another way",
            |_, observed| observed.routes[0].1 = Hop::Direct { index: 2, gateway: ip("192.0.2.11") },
            &["lead route to 10.244.1.0/24 through the tunnel to 10.244.1.0"],
        ),
        (
            "two ways",
            |_, observed| observed.routes.push((key("10.244.1.0/24"), Hop::Other { tunnel: false })),
            &[
                "remove route to 10.244.1.0/24",
                "remove route to 10.244.1.0/24",
                "add route to 10.244.1.0/24 through the tunnel to 10.244.1.0",
            ],
        ),
        (
            "a stray route",
            |_, observed| observed.routes.push((key("10.244.7.0/24"), Hop::Other { tunnel: false })),
            &["remove route to 10.244.7.0/24"],
        ),
        ("no neighbour", |_, observed| observed.neighbours.clear(), &["set neighbour 10.244.1.0 (02:00:00:00:00:0b)"]),
        (
            "a wrong forward",
            |_, observed| observed.forwards[0].1 = None,
            &["remove forward of 02:00:00:00:00:0b", "add forward of 02:00:00:00:00:0b to 192.0.2.11"],
        ),
        (
            "a flooding forward to two",
            |_, observed| {
                observed.forwards.extend([(mac(0), Some(ip("192.0.2.11"))), (mac(0), Some(ip("192.0.2.12")))]);
            },
            &["remove forward of 02:00:00:00:00:00"],
        ),
        (
            "the peer is gone",
            |desired, _| {
                desired.routes.clear();
                desired.neighbours.clear();
                desired.forwards.clear();
            },
            &["remove route to 10.244.1.0/24", "remove neighbour 10.244.1.0", "remove forward of 02:00:00:00:00:0b"],
        ),
        (
            "the peer is near now",
            |desired, _| {
                let hop = Hop::Direct { index: 2, gateway: ip("192.0.2.11") };
                desired.routes.insert(key("10.244.1.0/24"), hop);
                desired.neighbours.clear();
                desired.forwards.clear();
            },
            &[
                "lead route to 10.244.1.0/24 to 192.0.2.11 on link 2",
                "remove neighbour 10.244.1.0",
                "remove forward of 02:00:00:00:00:0b",
            ],
        ),
    ];
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = (desired(), reached(&desired()));
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), expected, "{name}");
    }
}

#[test]
fn a_foreign_link_of_our_name_is_refused_and_never_removed() {
    let observed = Observed { tunnel: ObservedTunnel::Foreign, ..Observed::default() };
    assert_eq!(plan(&desired(), &observed), Err(NameTaken));
    assert_eq!(plan(&Desired::default(), &observed), Ok(Vec::new()));
}

/// A kernel, as far as steps can tell.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    link: Option<Link>,
    /// Marked and others.
    routes: Vec<(bool, RouteKey, Hop)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Link {
    tunnel: Tunnel,
    ours: bool,
    marked: bool,
    up: bool,
    addresses: BTreeSet<IpNet>,
    neighbours: BTreeMap<IpAddr, MacAddress>,
    forwards: Vec<(MacAddress, Option<IpAddr>)>,
}

impl Kernel {
    fn observe(&self) -> Observed {
        let routes = self.routes.iter().filter(|(marked, ..)| *marked).map(|(_, key, hop)| (*key, *hop)).collect();
        match &self.link {
            None => Observed { routes, ..Observed::default() },
            Some(link) if !link.ours => Observed { tunnel: ObservedTunnel::Foreign, routes, ..Observed::default() },
            Some(Link { tunnel, ours: _, marked, up, addresses, neighbours, forwards }) => Observed {
                tunnel: ObservedTunnel::Present {
                    index: 5,
                    vxlan: Some(tunnel.vxlan.clone()),
                    marked: *marked,
                    mac: Some(tunnel.mac),
                    mtu_bytes: tunnel.mtu_bytes,
                    up: *up,
                },
                addresses: addresses.clone(),
                neighbours: neighbours.clone(),
                forwards: forwards.clone(),
                routes,
            },
        }
    }

    /// Fails where the kernel would.
    fn apply(&mut self, step: &Step) -> Result<(), String> {
        let refused = || Err(format!("refused: {step}"));
        match step {
            Step::RemoveTunnel(index) => {
                if *index != 5 || !self.link.take().is_some_and(|link| link.ours) {
                    return refused();
                }
                self.routes.retain(|(_, _, hop)| !matches!(hop, Hop::Tunnel(_) | Hop::Other { tunnel: true }));
            }
            Step::AddTunnel(tunnel) => {
                if self.link.is_some() {
                    return refused();
                }
                self.link = Some(Link {
                    tunnel: tunnel.clone(),
                    ours: true,
                    marked: false,
                    up: false,
                    addresses: BTreeSet::new(),
                    neighbours: BTreeMap::new(),
                    forwards: Vec::new(),
                });
            }
            Step::AddRoute(key, hop) => {
                let up = self.link.as_ref().is_some_and(|link| link.up);
                let taken = self.routes.iter().any(|(_, taken, _)| taken == key);
                if taken || matches!(hop, Hop::Tunnel(_)) && !up {
                    return refused();
                }
                self.routes.push((true, *key, *hop));
            }
            Step::ReplaceRoute(key, hop) => {
                let mut ours = self.routes.iter_mut().filter(|(_, found, _)| found == key);
                let (Some(route), None) = (ours.next(), ours.next()) else { return refused() };
                if !route.0 {
                    return refused();
                }
                route.2 = *hop;
            }
            Step::RemoveRoute(key) => {
                let Some(found) = self.routes.iter().position(|(marked, found, _)| *marked && found == key) else {
                    return refused();
                };
                self.routes.remove(found);
            }
            step => {
                let Some(link) = self.link.as_mut().filter(|link| link.ours) else { return refused() };
                match step {
                    Step::ConfigureTunnel { mac, mtu_bytes } => {
                        (link.tunnel.mac, link.tunnel.mtu_bytes) = (*mac, *mtu_bytes);
                        (link.marked, link.up) = (true, true);
                    }
                    Step::AddAddress(address) if link.addresses.insert(*address) => {}
                    Step::RemoveAddress(address) if link.addresses.remove(address) => {}
                    Step::SetNeighbour(address, mac) => drop(link.neighbours.insert(*address, *mac)),
                    Step::RemoveNeighbour(address) if link.neighbours.remove(address).is_some() => {}
                    Step::AddForward(mac, remote) if link.forwards.iter().all(|(known, _)| known != mac) => {
                        link.forwards.push((*mac, Some(*remote)));
                    }
                    Step::RemoveForward(mac) if link.forwards.iter().any(|(known, _)| known == mac) => {
                        link.forwards.retain(|(known, _)| known != mac);
                    }
                    _ => return refused(),
                }
            }
        }
        Ok(())
    }
}

fn hop() -> impl Strategy<Value = Hop> {
    prop_oneof![
        (1u8..5).prop_map(|n| Hop::Tunnel([10, 244, n, 0].into())),
        (1u8..5).prop_map(|n| Hop::Direct { index: 2, gateway: [192, 0, 2, n].into() }),
    ]
}

fn any_hop() -> impl Strategy<Value = Hop> {
    prop_oneof![hop(), any::<bool>().prop_map(|tunnel| Hop::Other { tunnel })]
}

fn any_key() -> impl Strategy<Value = RouteKey> {
    (1u8..6, 0u32..2)
        .prop_map(|(n, metric)| RouteKey { destination: IpNet::new([10, 244, n, 0].into(), 24).unwrap(), metric })
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    (1u32..3, 1u32..3).prop_map(|(vni, mtu)| tunnel(vni, 1300 + mtu))
}

fn addresses() -> impl Strategy<Value = BTreeSet<IpNet>> {
    prop::collection::btree_set((0u8..4).prop_map(|n| IpNet::from(IpAddr::from([10, 244, n, 0]))), 0..3)
}

fn neighbours() -> impl Strategy<Value = BTreeMap<IpAddr, MacAddress>> {
    prop::collection::btree_map((1u8..5).prop_map(|n| IpAddr::from([10, 244, n, 0])), (1u8..4).prop_map(mac), 0..4)
}

fn remote() -> impl Strategy<Value = IpAddr> {
    (1u8..4).prop_map(|n| IpAddr::from([192, 0, 2, n]))
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let tunnels = (
        any_tunnel(),
        addresses(),
        neighbours(),
        prop::collection::btree_map((1u8..4).prop_map(mac), remote(), 0..4),
        prop::collection::btree_map(any_key(), hop(), 0..6),
    );
    let tunnels = tunnels.prop_map(|(tunnel, addresses, neighbours, forwards, routes)| Desired {
        tunnel: Some(tunnel),
        addresses,
        neighbours,
        forwards,
        routes,
    });
    prop_oneof![4 => tunnels, 1 => Just(Desired::default())]
}

fn any_link() -> impl Strategy<Value = Link> {
    let forwards = prop::collection::vec(((0u8..4).prop_map(mac), prop::option::of(remote())), 0..5);
    let flags = (prop::bool::weighted(0.9), any::<bool>(), any::<bool>());
    (any_tunnel(), flags, addresses(), neighbours(), forwards).prop_map(
        |(tunnel, (ours, marked, up), addresses, neighbours, forwards)| Link {
            tunnel,
            ours,
            marked,
            up,
            addresses,
            neighbours,
            forwards,
        },
    )
}

/// A kernel in any state that it can be in: routes over the tunnel's link only while that is up.
fn any_kernel() -> impl Strategy<Value = Kernel> {
    let routes = prop::collection::vec((any::<bool>(), any_key(), any_hop()), 0..8);
    (prop::option::weighted(0.8, any_link()), routes).prop_map(|(link, mut routes)| {
        if !link.as_ref().is_some_and(|link| link.ours && link.up) {
            routes.retain(|(_, _, hop)| matches!(hop, Hop::Direct { .. } | Hop::Other { tunnel: false }));
        }
        // Somebody else's routes lie elsewhere: the kernel lets none of ours into their place.
        let foreign: Vec<RouteKey> = routes.iter().filter(|(marked, ..)| !marked).map(|(_, key, _)| *key).collect();
        routes.retain(|(marked, key, _)| !marked || !foreign.contains(key));
        Kernel { link, routes }
    })
}

fn foreign(kernel: &Kernel) -> Vec<(RouteKey, Hop)> {
    // What somebody else leads over our link goes with it.
    let elsewhere = |hop: &Hop| matches!(hop, Hop::Direct { .. } | Hop::Other { tunnel: false });
    let foreign = kernel.routes.iter().filter(|(marked, _, hop)| !marked && elsewhere(hop));
    foreign.map(|(_, key, hop)| (*key, *hop)).collect()
}

proptest! {
    #[test]
    fn any_kernel_reaches_the_desired_and_stays(mut desired in any_desired(), mut kernel in any_kernel()) {
        // Where somebody else has a route, ours is refused; that is the kernel's part and has a test of its own.
        let taken: Vec<RouteKey> = kernel.routes.iter().filter(|(marked, ..)| !marked).map(|(_, key, _)| *key).collect();
        desired.routes.retain(|key, _| !taken.contains(key));
        let before = kernel.clone();
        let Ok(steps) = plan(&desired, &kernel.observe()) else {
            prop_assert!(before.link.is_some_and(|link| !link.ours));
            return Ok(());
        };
        for step in &steps {
            kernel.apply(step).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(plan(&desired, &kernel.observe()), Ok(Vec::new()), "planned again after {:?}", steps);
        prop_assert_eq!(foreign(&before), foreign(&kernel));
        if let Some(link) = before.link.filter(|link| !link.ours) {
            prop_assert_eq!(kernel.link, Some(link));
            return Ok(());
        }
        let observed = kernel.observe();
        let found = Desired {
            tunnel: kernel.link.as_ref().map(|link| link.tunnel.clone()),
            addresses: observed.addresses,
            neighbours: observed.neighbours,
            forwards: observed.forwards.iter().filter_map(|(mac, remote)| Some((*mac, (*remote)?))).collect(),
            routes: observed.routes.iter().copied().collect(),
        };
        prop_assert_eq!(observed.routes.len(), found.routes.len());
        prop_assert_eq!(observed.forwards.len(), found.forwards.len());
        prop_assert_eq!(found, desired);
    }
}
