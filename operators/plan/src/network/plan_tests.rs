use std::net::Ipv4Addr;

use garboard_api::machine::{HostEntry, MachineNetwork};
use proptest::prelude::*;

use super::lease::LeaseRoute;
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(super) fn link(index: u32, name: &str, carrier: bool) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        permanent_mac: None,
        driver: None,
        loopback: false,
        physical: true,
        ours: false,
        settings: None,
        controller: None,
        up: true,
        carrier,
        mtu: 1500,
        max_mtu: Some(9000),
    }
}

fn loopback() -> Link {
    Link { mac: None, loopback: true, physical: false, ..link(1, "lo", true) }
}

fn declared(selector: Selector) -> LinkConfig {
    LinkConfig {
        selector,
        label: None,
        port: false,
        dhcp4: false,
        accept_ra: None,
        addresses: vec![],
        gateways: vec![],
        routes: vec![],
        mtu: None,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn lease() -> Lease {
    Lease {
        address: "192.0.2.10/24".parse().unwrap(),
        server: Ipv4Addr::new(192, 0, 2, 1),
        routes: vec![LeaseRoute { destination: Ipv4Net::default(), gateway: Some(Ipv4Addr::new(192, 0, 2, 1)) }],
        nameservers: vec![],
        time_servers: vec![],
        domain: None,
        mtu: None,
        term: None,
    }
}

fn leases(indices: &[u32]) -> BTreeMap<u32, Lease> {
    indices.iter().map(|index| (*index, lease())).collect()
}

fn selected_indices(config: &Config, links: &[Link], leased: &[u32], current: Option<u32>) -> Vec<u32> {
    select(config, links, &leases(leased), current).into_iter().map(|selected| selected.index).collect()
}

#[test]
fn default_is_the_first_physical_link_with_a_carrier_and_a_lease() {
    let virtual_link = Link { physical: false, ..link(2, "veth0", true) };
    let links = [loopback(), virtual_link, link(4, "eth1", true), link(3, "eth0", false), link(5, "eth2", true)];
    type Case = (&'static str, &'static [u32], Option<u32>, &'static [u32]);
    let cases: [Case; 9] = [
        ("all with a carrier are asked", &[], None, &[4, 5]),
        ("the one with a lease is used, and nobody else is asked", &[5], None, &[5]),
        ("the first of those with a lease is used", &[4, 5], None, &[4]),
        ("the one from before stays", &[4, 5], Some(5), &[5]),
        ("without its lease it is one of those that are asked, first", &[], Some(5), &[5, 4]),
        ("without its lease it makes room for one that has one", &[4], Some(5), &[4]),
        ("without its carrier it keeps its lease while the others are asked", &[3], Some(3), &[3, 4, 5]),
        ("without its carrier it makes room for one that has a lease", &[3, 5], Some(3), &[5]),
        ("without carrier and lease it is nothing", &[], Some(3), &[4, 5]),
    ];
    let config = Config::default();
    for (what, leased, current, expected) in cases {
        assert_eq!(selected_indices(&config, &links, leased, current), expected, "{what}");
    }
    let dark = links.map(|link| Link { carrier: false, ..link });
    assert_eq!(selected_indices(&config, &dark, &[4, 5], Some(5)), [5], "nobody else takes over");
    assert!(selected_indices(&config, &dark, &[4, 5], None).is_empty());
    assert!(selected_indices(&config, &[loopback()], &[], None).is_empty());
}

#[test]
fn declared_links_are_found_by_name_or_hardware_address() {
    let vlan = Link { physical: false, mac: Some(MAC), ..link(9, "eth0.5", true) };
    // A bond's member shows the bond's address.
    let member = Link { mac: Some(MAC), permanent_mac: Some([2, 0, 0, 0, 0, 2]), ..link(2, "eth2", true) };
    let links = [vlan, member, Link { mac: Some(MAC), ..link(3, "eth0", false) }, link(4, "eth1", true)];
    let config = |selectors: &[Selector]| Config {
        links: selectors.iter().cloned().map(declared).collect(),
        ..Config::default()
    };
    let name = |name: &str| Selector::Name(name.to_owned());
    assert_eq!(selected_indices(&config(&[name("eth1"), Selector::Mac(MAC)]), &links, &[], None), [4, 3]);
    assert_eq!(selected_indices(&config(&[name("eth0"), Selector::Mac(MAC)]), &links, &[], None), [3], "not twice");
    assert!(selected_indices(&config(&[name("eth7")]), &links, &[], None).is_empty());
}

#[test]
fn a_driver_means_what_nothing_else_means() {
    let of = |driver: &str, link: Link| Link { driver: Some(driver.to_owned()), ..link };
    let links = [
        of("e1000e", link(2, "eth0", true)),
        of("virtio_net", link(4, "eth2", true)),
        of("virtio_net", link(3, "eth1", true)),
        Link { physical: false, ..of("virtio_net", link(1, "vnet0", true)) },
        of("virtio_net", link(5, "eth3", true)),
    ];
    let driver = |name: &str| declared(Selector::Driver(name.to_owned()));
    let by_name = declared(Selector::Name("eth1".to_owned()));
    let config = |links: &[LinkConfig]| Config { links: links.to_vec(), ..Config::default() };
    let virtio = driver("virtio_net");
    assert_eq!(selected_indices(&config(&[virtio.clone(), driver("e1000e")]), &links, &[], None), [3, 2]);
    let all = [virtio.clone(), by_name, virtio.clone(), virtio];
    assert_eq!(selected_indices(&config(&all), &links, &[], None), [4, 3, 5]);
}

#[test]
fn the_resource_becomes_the_configuration() {
    let network: MachineNetwork = serde_json::from_value(serde_json::json!({
        "links": [
            { "match": { "name": "eth0" }, "mtu": 1400 },
            { "match": { "mac": "02:00:00:00:00:01" }, "addresses": ["192.0.2.7/24"], "gateway": "192.0.2.1",
              "routes": [{ "to": "198.51.100.0/24", "via": "192.0.2.2" }] },
        ],
        "nameservers": ["192.0.2.53"],
        "searchDomains": ["example.org"],
        "hosts": [{ "address": "192.0.2.9", "names": ["nas"] }],
    }))
    .unwrap();
    let by_name = LinkConfig {
        label: Some("eth0".to_owned()),
        dhcp4: true,
        mtu: Some(1400),
        ..declared(Selector::Name("eth0".to_owned()))
    };
    let by_mac = LinkConfig {
        addresses: vec![net("192.0.2.7/24")],
        gateways: vec!["192.0.2.1".parse().unwrap()],
        routes: vec![RouteConfig {
            destination: net("198.51.100.0/24"),
            gateway: Some("192.0.2.2".parse().unwrap()),
            metric: None,
            table: None,
        }],
        ..declared(Selector::Mac(MAC))
    };
    let expected = Config {
        links: vec![by_name, by_mac],
        rules: vec![],
        nameservers: vec!["192.0.2.53".parse().unwrap()],
        search: vec!["example.org".to_owned()],
        hosts: vec![HostEntry { address: [192, 0, 2, 9].into(), names: vec!["nas".into()] }],
    };
    assert_eq!(Config::from(&network), expected);
}

#[test]
fn all_physical_links_go_up_to_find_the_carrier() {
    let down = |link: Link| Link { up: false, carrier: false, ..link };
    let links = [down(loopback()), down(link(2, "eth0", false)), down(link(3, "eth1", false))];
    let config = Config::default();
    let observed = Observed { links: links.to_vec(), ..Observed::default() };
    let steps = plan(&desire(&config, &links, &[], &BTreeMap::new()), &observed);
    assert_eq!(steps, [Step::SetUp(1), Step::SetUp(2), Step::SetUp(3)]);

    let config = Config { links: vec![declared(Selector::Name("eth1".to_owned()))], ..Config::default() };
    let selected = select(&config, &links, &BTreeMap::new(), None);
    let steps = plan(&desire(&config, &links, &selected, &BTreeMap::new()), &observed);
    assert_eq!(steps, [Step::SetUp(1), Step::SetUp(3)], "undeclared links are left alone");
}

#[test]
fn a_lease_becomes_address_and_routes() {
    let links = [link(2, "eth0", true)];
    let config = Config::default();
    let selected = select(&config, &links, &BTreeMap::new(), None);
    let leases = BTreeMap::from([(2, Lease { mtu: Some(1400), ..lease() })]);
    let desired = desire(&config, &links, &selected, &leases);
    assert_eq!(desired.links, BTreeMap::from([(2, Some(1400))]));
    assert_eq!(desired.addresses, [Address { index: 2, address: net("192.0.2.10/24") }]);
    let gateway = Some("192.0.2.1".parse().unwrap());
    assert_eq!(
        desired.routes,
        [Route { destination: net("0.0.0.0/0"), gateway, index: 2, metric: LEASED_METRIC, table: MAIN_TABLE }]
    );
}

#[test]
fn a_gateway_outside_of_the_subnet_gets_a_route_first() {
    let links = [link(2, "eth0", true)];
    let config = Config::default();
    let selected = select(&config, &links, &BTreeMap::new(), None);
    let cloud = Lease { address: "192.0.2.10/32".parse().unwrap(), ..lease() };
    let desired = desire(&config, &links, &selected, &BTreeMap::from([(2, cloud)]));
    let destinations: Vec<_> =
        desired.routes.iter().map(|route| (route.destination, route.gateway.is_some())).collect();
    assert_eq!(destinations, [(net("192.0.2.1/32"), false), (net("0.0.0.0/0"), true)]);
}

#[test]
fn the_mtu_is_bounded_by_the_driver_and_the_users_wins() {
    let observed = Observed { links: vec![link(2, "eth0", true)], ..Observed::default() };
    let mut config = Config { links: vec![declared(Selector::Name("eth0".to_owned()))], ..Config::default() };
    config.links[0].dhcp4 = true;
    let leases = BTreeMap::from([(2, Lease { mtu: Some(1400), ..lease() })]);
    let mut mtu_step = |mtu| {
        config.links[0].mtu = mtu;
        let selected = select(&config, &observed.links, &BTreeMap::new(), None);
        let steps = plan(&desire(&config, &observed.links, &selected, &leases), &observed);
        steps.into_iter().find(|step| matches!(step, Step::SetMtu(..)))
    };
    assert_eq!(mtu_step(None), Some(Step::SetMtu(2, 1400)));
    assert_eq!(mtu_step(Some(65000)), Some(Step::SetMtu(2, 9000)));
    assert_eq!(mtu_step(Some(1500)), None);
}

#[test]
fn an_address_that_changes_leaves_before_the_new_one_comes() {
    let old = Address { index: 2, address: net("192.0.2.9/24") };
    let new = Address { index: 2, address: net("192.0.2.10/24") };
    let observed =
        Observed { links: vec![link(2, "eth0", true)], addresses: vec![(old.clone(), true)], ..Observed::default() };
    let desired = Desired { addresses: vec![new.clone()], ..Desired::default() };
    assert_eq!(plan(&desired, &observed), [Step::RemoveAddress(old), Step::AddAddress(new)]);
}

#[test]
fn addresses_of_the_default_link_come_first() {
    let address = |index, text| (Address { index, address: net(text) }, true);
    let observed = Observed {
        links: vec![loopback(), link(2, "eth0", true), link(3, "eth1", true), link(4, "gb0", true)],
        addresses: vec![
            address(1, "127.0.0.1/8"),
            address(2, "198.51.100.2/24"),
            address(3, "fe80::1/64"),
            address(3, "2001:db8::3/64"),
            address(3, "192.0.2.3/24"),
            address(4, "10.244.0.1/24"),
        ],
        routes: vec![
            (Route { destination: net("0.0.0.0/0"), gateway: None, index: 3, metric: 5, table: MAIN_TABLE }, false),
            (Route { destination: net("0.0.0.0/0"), gateway: None, index: 2, metric: 1, table: 100 }, false),
        ],
        ..Observed::default()
    };
    let names = ["eth0", "eth1"].map(|name| declared(Selector::Name(name.to_owned())));
    let config = Config { links: names.to_vec(), ..Config::default() };
    let selected = select(&config, &observed.links, &BTreeMap::new(), None);
    let addresses: Vec<String> = node_addresses(&observed, &selected).iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.3", "2001:db8::3", "198.51.100.2"]);
}

#[test]
fn declared_routes_are_wanted_with_their_links_or_their_own_metric() {
    let route = |destination: &str, gateway: Option<[u8; 4]>, metric: Option<u32>| RouteConfig {
        destination: net(destination),
        gateway: gateway.map(IpAddr::from),
        metric,
        table: None,
    };
    let config = LinkConfig {
        addresses: vec![net("192.0.2.7/24")],
        routes: vec![
            route("198.51.100.0/24", Some([192, 0, 2, 2]), None),
            route("203.0.113.0/24", None, Some(7)),
            RouteConfig { table: Some(100), ..route("10.9.0.0/16", Some([172, 16, 0, 1]), None) },
        ],
        ..declared(Selector::Name("eth0".to_owned()))
    };
    let selected = [Selected { index: 3, config }];
    let wanted = desire(&Config::default(), &[link(3, "eth0", true)], &selected, &BTreeMap::new()).routes;
    let shown: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let expected = [
        "198.51.100.0/24 by 192.0.2.2 on link 3, metric 100",
        "203.0.113.0/24 on link 3, metric 7",
        // A gateway that no address of the link reaches gets a route of its own first.
        "172.16.0.1/32 on link 3, metric 100, table 100",
        "10.9.0.0/16 by 172.16.0.1 on link 3, metric 100, table 100",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn what_routers_advertise_counts_where_it_is_declared_to() {
    let advertised = Address { index: 2, address: net("2001:db8::9/64") };
    let links = [link(2, "eth0.5", true)];
    let observed = Observed { links: links.to_vec(), advertised: vec![advertised], ..Observed::default() };
    let tell = |accept_ra| {
        let config = LinkConfig { accept_ra, ..declared(Selector::Name("eth0.5".to_owned())) };
        let selected = [Selected { index: 2, config }];
        let pairs = parameters(&selected, &links).into_iter().map(|(name, value)| format!("{name}={value}"));
        (node_addresses(&observed, &selected).len(), pairs.collect::<Vec<_>>().join(" "))
    };
    let parameter = "net.ipv6.conf.eth0/5";
    assert_eq!(tell(None), (0, String::new()));
    assert_eq!(tell(Some(false)), (0, format!("{parameter}.accept_ra=0")));
    assert_eq!(tell(Some(true)), (1, format!("{parameter}.accept_ra=2 {parameter}.autoconf=1")));
}

#[test]
fn a_vlan_goes_up_after_its_parent() {
    let settings = Settings::Vlan { parent: "eth0".to_owned(), id: 7, protocol: Default::default() };
    let down = |link: Link| Link { up: false, mtu: 1400, ..link };
    let vlan = Link { settings: Some(settings), ours: true, ..down(link(2, "v7", false)) };
    let observed = Observed { links: vec![vlan, down(link(9, "eth0", false))], ..Observed::default() };
    let desired = Desired { links: BTreeMap::from([(2, Some(1500)), (9, Some(1500))]), ..Desired::default() };
    let expected = [Step::SetMtu(9, 1500), Step::SetUp(9), Step::SetMtu(2, 1500), Step::SetUp(2)];
    assert_eq!(plan(&desired, &observed), expected);
}

#[test]
fn rules_come_after_the_routes_that_they_lead_to_and_go_before_them() {
    let rule = |table| Rule { ipv6: false, from: Some(net("192.0.2.0/24")), to: None, mark: None, table, priority: 9 };
    let route = |table| Route { destination: net("0.0.0.0/0"), gateway: None, index: 2, metric: 1, table };
    let observed = Observed {
        links: vec![link(2, "eth0", true)],
        routes: vec![(route(7), true)],
        rules: vec![(rule(7), true), (rule(9), false)],
        ..Observed::default()
    };
    let desired = Desired { routes: vec![route(8)], rules: vec![rule(8), rule(9)], ..Desired::default() };
    let expected =
        [Step::RemoveRule(rule(7)), Step::RemoveRoute(route(7)), Step::AddRoute(route(8)), Step::AddRule(rule(8))];
    assert_eq!(plan(&desired, &observed), expected);
}

#[test]
fn what_is_waited_for_is_said_in_words() {
    let phases = BTreeMap::from([(2, "discovering")]);
    let say = |config: &Config, links: &[Link]| {
        let observed = Observed { links: links.to_vec(), ..Observed::default() };
        waiting(config, &observed, &select(config, links, &BTreeMap::new(), None), &phases).join("; ")
    };
    let config = Config::default();
    assert_eq!(say(&config, &[]), "an Ethernet link: the machine shows none");
    assert_eq!(
        say(&config, &[link(2, "eth0", false), link(3, "eth1", false)]),
        "a carrier on one of the links eth0, eth1"
    );
    assert_eq!(say(&config, &[link(2, "eth0", true)]), "an address by DHCP on eth0 (discovering)");
    let config = Config { links: vec![declared(Selector::Mac(MAC))], ..Config::default() };
    assert_eq!(say(&config, &[]), "the link with hardware address 02:00:00:00:00:01: there is none");

    let network: MachineNetwork = serde_json::from_value(serde_json::json!({ "links": [
        { "match": { "name": "eth0" } },
        { "match": { "driver": "igb" }, "name": "spare" },
        { "name": "v7", "vlan": { "parent": "spare", "id": 7 }, "dhcp4": false },
        { "name": "br0", "bridge": { "ports": ["eth0"] }, "dhcp4": false },
    ] }))
    .unwrap();
    let ours = |link: Link| Link { physical: false, ours: true, ..link };
    let links = [link(2, "eth0", false), ours(link(3, "br0", true))];
    let missing = "a link of the driver igb: there is no other; the link v7: it is made once spare is there";
    assert_eq!(say(&(&network).into(), &links), missing, "and a port needs no carrier");
    let taken = [link(2, "eth0", false), Link { ours: false, ..links[1].clone() }];
    let name = "the link br0: another link, which is not Garboard's, has its name";
    assert_eq!(say(&(&network).into(), &taken), format!("{missing}; {name}"));
}

/// Carries out steps as the kernel does, side effects left out.
fn carry_out(observed: &mut Observed, steps: &[Step]) {
    for step in steps {
        match step {
            Step::SetUp(index) => {
                observed.links.iter_mut().filter(|link| link.index == *index).for_each(|l| l.up = true)
            }
            Step::SetMtu(index, mtu) => {
                observed.links.iter_mut().filter(|link| link.index == *index).for_each(|l| l.mtu = *mtu);
            }
            Step::RemoveRoute(route) => observed.routes.retain(|(other, _)| other != route),
            Step::RemoveAddress(address) => observed.addresses.retain(|(other, _)| other != address),
            Step::AddAddress(address) => observed.addresses.push((address.clone(), true)),
            Step::AddRoute(route) => observed.routes.push((route.clone(), true)),
            Step::RemoveRule(rule) => observed.rules.retain(|(other, _)| other != rule),
            Step::AddRule(rule) => observed.rules.push((rule.clone(), true)),
        }
    }
}

fn nets() -> impl Strategy<Value = IpNet> {
    (0..4_u8, 8..=32_u8).prop_map(|(host, length)| net(&format!("192.0.{host}.{}/{length}", host + 1)))
}

fn addresses() -> impl Strategy<Value = Address> {
    (1..5_u32, nets()).prop_map(|(index, address)| Address { index, address })
}

fn routes() -> impl Strategy<Value = Route> {
    (nets(), proptest::option::of(0..4_u8), 1..5_u32, 0..3_u32).prop_map(|(destination, gateway, index, metric)| {
        Route {
            destination: destination.trunc(),
            gateway: gateway.map(|last| IpAddr::from([192, 0, 2, last])),
            index,
            metric,
            table: MAIN_TABLE,
        }
    })
}

fn rules() -> impl Strategy<Value = Rule> {
    (proptest::option::of(nets()), proptest::option::of(0..2_u32), 1..3_u32).prop_map(|(from, mark, table)| Rule {
        ipv6: false,
        from,
        to: None,
        mark: mark.map(|mark| (mark, u32::MAX)),
        table,
        priority: 7,
    })
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    let state = (any::<bool>(), any::<bool>(), any::<bool>());
    proptest::collection::vec(state, 0..4).prop_map(|states| {
        let link = |(position, (physical, up, carrier)): (usize, (bool, bool, bool))| {
            let index = position as u32 + 1;
            Link { physical, up, ..link(index, &format!("eth{position}"), carrier && up) }
        };
        states.into_iter().enumerate().map(link).collect()
    })
}

fn observed() -> impl Strategy<Value = Observed> {
    let marked = |items| proptest::collection::vec((items, any::<bool>()), 0..6);
    let routes = proptest::collection::vec((routes(), any::<bool>()), 0..6);
    let rules = proptest::collection::btree_map(rules(), any::<bool>(), 0..4);
    (links(), marked(addresses()), routes, rules)
        .prop_map(|(links, addresses, routes, rules)| Observed {
            links,
            addresses,
            advertised: vec![],
            routes,
            rules: rules.into_iter().collect(),
        })
        .prop_map(|mut observed| {
            // The kernel has each address and each route once.
            let mut seen = Vec::new();
            observed.addresses.retain(|(address, _)| {
                let new = !seen.contains(address);
                seen.push(address.clone());
                new
            });
            let mut seen = Vec::new();
            observed.routes.retain(|(route, _)| {
                let new = !seen.contains(route);
                seen.push(route.clone());
                new
            });
            observed
        })
}

fn desired() -> impl Strategy<Value = Desired> {
    let links = proptest::collection::btree_map(1..5_u32, proptest::option::of(600..20000_u32), 0..4);
    let addresses = proptest::collection::btree_set(addresses(), 0..5);
    let routes = proptest::collection::btree_set(routes(), 0..5);
    let rules = proptest::collection::btree_set(rules(), 0..4);
    (links, addresses, routes, rules).prop_map(|(links, addresses, routes, rules)| Desired {
        links,
        addresses: addresses.into_iter().collect(),
        routes: routes.into_iter().collect(),
        rules: rules.into_iter().collect(),
    })
}

proptest! {
    #[test]
    fn planning_after_applying_is_empty(desired in desired(), mut observed in observed()) {
        let steps = plan(&desired, &observed);
        carry_out(&mut observed, &steps);
        prop_assert_eq!(plan(&desired, &observed), []);
    }

    #[test]
    fn what_is_unmarked_stays_untouched(desired in desired(), observed in observed()) {
        for step in plan(&desired, &observed) {
            match step {
                Step::RemoveRoute(route) => prop_assert!(observed.routes.contains(&(route, true))),
                Step::RemoveAddress(address) => prop_assert!(observed.addresses.contains(&(address, true))),
                Step::SetUp(index) | Step::SetMtu(index, _) => prop_assert!(desired.links.contains_key(&index)),
                Step::RemoveRule(rule) => prop_assert!(observed.rules.contains(&(rule, true))),
                Step::AddAddress(_) | Step::AddRoute(_) | Step::AddRule(_) => {}
            }
        }
    }

    #[test]
    fn the_default_choice_is_physical_and_stable(
        links in links(),
        leased in proptest::collection::vec(1..5_u32, 0..4),
        current in proptest::option::of(1..5_u32),
    ) {
        let config = Config::default();
        let picked = selected_indices(&config, &links, &leased, current);
        for index in &picked {
            prop_assert!(links.iter().any(|link| link.index == *index && link.physical));
        }
        let granted: Vec<u32> = picked.iter().copied().filter(|index| leased.contains(index)).collect();
        prop_assert!(granted.len() <= 1, "two links with a lease would both get its address");
        prop_assert_eq!(&granted[..], &picked[..granted.len()], "the link in use comes first, so its metric stays");
        let current = granted.first().copied().or(current);
        prop_assert_eq!(selected_indices(&config, &links, &leased, current), picked);
    }
}
