use proptest::prelude::*;
use serde_json::json;

use garboard_api::machine::MachineNetwork;

use super::super::select;
use super::*;

fn link(index: u32, name: &str) -> Link {
    Link { max_mtu: None, ..super::super::tests::link(index, name, true) }
}

fn config(links: serde_json::Value) -> Config {
    let network: MachineNetwork = serde_json::from_value(json!({ "links": links })).unwrap();
    Config::from(&network)
}

fn wanted(config: &Config, links: &[Link]) -> Vec<Made> {
    made(config, links, &select(config, links, &BTreeMap::new(), None))
}

fn steps(config: &Config, links: &[Link]) -> Vec<String> {
    plan_made(&wanted(config, links), links).iter().map(ToString::to_string).collect()
}

/// Carries out steps as the kernel does, and refuses what it would refuse.
fn carry_out(links: &mut Vec<Link>, steps: &[LinkStep]) {
    for step in steps {
        let index = |links: &[Link], name: &str| {
            links.iter().find(|link| link.name == name).unwrap_or_else(|| panic!("{step}: no {name}: {links:?}")).index
        };
        match step {
            LinkStep::Remove(name) => {
                // Whoever removes a parent first finds its VLANs gone.
                let gone = index(links, name);
                links.retain(|link| link.name != *name);
                for link in links.iter_mut().filter(|link| link.controller == Some(gone)) {
                    link.controller = None;
                }
                let falls =
                    |link: &Link| matches!(&link.settings, Some(Settings::Vlan { parent, .. }) if parent == name);
                assert!(!links.iter().any(|link| link.ours && falls(link)), "{step}: it has VLANs");
            }
            LinkStep::Add(name, settings) => {
                assert!(!links.iter().any(|link| link.name == *name), "{step}: the name is taken");
                if let Settings::Vlan { parent, .. } = settings {
                    index(links, parent);
                }
                let mut settings = settings.clone();
                if let Settings::Bond { primary, .. } = &mut settings {
                    *primary = None;
                }
                let next = links.iter().map(|link| link.index).max().unwrap_or(0) + 1;
                let made =
                    Link { physical: false, ours: true, up: false, settings: Some(settings), ..link(next, name) };
                links.push(made);
            }
            LinkStep::Change(name, settings) => {
                let changed = index(links, name);
                let link = links.iter_mut().find(|link| link.index == changed).unwrap();
                assert!(link.ours && link.settings.as_ref().unwrap().can_become(settings), "{step}");
                link.settings = Some(settings.clone());
            }
            LinkStep::Attach { port, controller, down } => {
                let (port, controller) = (index(links, port), index(links, controller));
                let bonded = links
                    .iter()
                    .any(|link| link.index == controller && matches!(link.settings, Some(Settings::Bond { .. })));
                let link = links.iter_mut().find(|link| link.index == port).unwrap();
                assert!(!bonded || *down || !link.up, "{step}: it is up");
                link.controller = Some(controller);
                link.up = bonded || link.up;
            }
            LinkStep::Detach(port) => {
                let port = index(links, port);
                links.iter_mut().filter(|link| link.index == port).for_each(|link| link.controller = None);
            }
        }
    }
}

/// Plans and carries out until nothing is left; says in how many rounds.
fn settle(config: &Config, links: &mut Vec<Link>) -> usize {
    for round in 0..4 {
        let steps = plan_made(&wanted(config, links), links);
        if steps.is_empty() {
            return round;
        }
        carry_out(links, &steps);
    }
    panic!("it does not end: {:?}", steps(config, links));
}

#[test]
fn a_stack_is_made_from_below_whatever_the_order_of_its_declaration() {
    let config = config(json!([
        { "name": "br0", "bridge": { "ports": ["v10", "spare"] } },
        { "name": "v10", "vlan": { "parent": "bond0", "id": 10 } },
        { "name": "bond0", "bond": { "mode": "active-backup", "members": ["left", "eth1"], "primary": "left" } },
        { "name": "left", "match": { "mac": "02:00:00:00:00:02" } },
        { "name": "spare", "match": { "mac": "02:00:00:00:00:07" } },
        { "match": { "name": "eth1" } },
    ]));
    let mut links = vec![link(2, "eth0"), Link { up: false, ..link(3, "eth1") }];
    let expected = [
        "make link bond0: bond, mode ActiveBackup, miimon 100 ms, hash Layer2, primary eth0",
        "make link eth0 a port of bond0",
        "make link eth1 a port of bond0",
        "make link v10: VLAN 10 on bond0",
        "make link br0: bridge without STP",
        "make link v10 a port of br0",
    ];
    assert_eq!(steps(&config, &links), expected);
    let downs: Vec<bool> = plan_made(&wanted(&config, &links), &links)
        .into_iter()
        .filter_map(|step| match step {
            LinkStep::Attach { down, .. } => Some(down),
            _ => None,
        })
        .collect();
    assert_eq!(downs, [true, false, false], "a bond takes what is down, a bridge anything");
    settle(&config, &mut links);
    links.push(link(20, "eth5"));
    links.last_mut().unwrap().mac = Some([2, 0, 0, 0, 0, 7]);
    assert_eq!(steps(&config, &links), ["make link eth5 a port of br0"], "one that appears later");
}

#[test]
fn what_can_be_changed_is_changed_and_the_rest_is_made_anew() {
    let eth = json!({ "match": { "name": "eth0" } });
    let bond = |more: serde_json::Value| {
        let mut bond = json!({ "mode": "802.3ad", "members": ["eth0"] });
        bond.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": "bond0", "bond": bond })
    };
    let vlan = |id: u16| json!({ "name": "v", "vlan": { "parent": "bond0", "id": id } });
    let mut links = vec![link(2, "eth0")];
    settle(&config(json!([eth, bond(json!({})), vlan(5)])), &mut links);
    type Case = (&'static str, serde_json::Value, &'static [&'static str]);
    let remade_vlan: &[&str] = &["remove link v", "make link v: VLAN 6 on bond0"];
    let cases: [Case; 6] = [
        ("nothing", json!([eth, bond(json!({})), vlan(5)]), &[]),
        (
            "another interval",
            json!([eth, bond(json!({ "miimon": 50 })), vlan(5)]),
            &["change link bond0: bond, mode Ieee8023Ad, miimon 50 ms, hash Layer2, LACP Slow"],
        ),
        ("another tag", json!([eth, bond(json!({})), vlan(6)]), remade_vlan),
        (
            "another rate, and what is on top goes with it",
            json!([eth, bond(json!({ "lacpRate": "fast" })), vlan(5)]),
            &[
                "remove link v",
                "remove link bond0",
                "make link bond0: bond, mode Ieee8023Ad, miimon 100 ms, hash Layer2, LACP Fast",
                "make link eth0 a port of bond0",
                "make link v: VLAN 5 on bond0",
            ],
        ),
        ("no VLAN", json!([eth, bond(json!({}))]), &["remove link v"]),
        ("nothing of it", json!([eth]), &["remove link v", "remove link bond0"]),
    ];
    for (what, declared, expected) in cases {
        assert_eq!(steps(&config(declared), &links), expected, "{what}");
    }
}

#[test]
fn drift_is_repaired_and_the_links_of_others_stay() {
    let declared = config(json!([
        { "match": { "name": "eth0" } },
        { "match": { "name": "eth1" } },
        { "name": "br0", "bridge": { "ports": ["eth0"], "stp": true } },
        { "name": "br1", "bridge": {} },
    ]));
    let mut links = vec![link(2, "eth0"), link(3, "eth1"), Link { physical: false, ..link(4, "br1") }];
    settle(&declared, &mut links);
    let bridge = links.iter().find(|link| link.name == "br0").unwrap().index;
    assert_eq!(links.iter().filter(|link| link.ours).count(), 1, "br1 is somebody else's");
    links.push(Link { physical: false, controller: Some(bridge), ..link(9, "tap0") });
    assert_eq!(steps(&declared, &links), [] as [&str; 0], "a guest's link");

    links[0].controller = None;
    links[1].controller = Some(bridge);
    let changed = links.iter_mut().find(|link| link.name == "br0").unwrap();
    changed.settings = Some(Settings::Bridge { stp: false });
    let expected =
        ["make link eth1 a port no more", "make link eth0 a port of br0", "change link br0: bridge with STP"];
    assert_eq!(steps(&declared, &links), expected);
    links.retain(|link| link.name != "br0");
    assert_eq!(steps(&declared, &links), ["make link br0: bridge with STP", "make link eth0 a port of br0"]);
}

#[test]
fn a_preferred_member_is_told_once_it_is_attached() {
    let declared = |primary: &str| {
        config(json!([
            { "match": { "name": "eth0" } },
            { "match": { "name": "eth1" } },
            { "name": "b", "bond": { "mode": "active-backup", "members": ["eth0", "eth1"], "primary": primary } },
        ]))
    };
    let mut links = vec![link(2, "eth0")];
    settle(&declared("eth1"), &mut links);
    links.push(link(9, "eth1"));
    assert_eq!(steps(&declared("eth1"), &links), ["make link eth1 a port of b"]);
    settle(&declared("eth1"), &mut links);
    let change = "change link b: bond, mode ActiveBackup, miimon 100 ms, hash Layer2, primary eth0";
    assert_eq!(steps(&declared("eth0"), &links), [change]);
}

fn stacks() -> impl Strategy<Value = Config> {
    let bond = (any::<bool>(), proptest::option::of(0..2_u8)).prop_map(|(lacp, member)| {
        let members: Vec<String> = (0..2_u8).filter(|n| Some(*n) != member).map(|n| format!("eth{n}")).collect();
        json!({ "name": "bond0", "bond": { "mode": if lacp { "802.3ad" } else { "balance-rr" }, "members": members } })
    });
    let vlan = (prop_oneof![Just("bond0"), Just("eth2")], 1..3_u16)
        .prop_map(|(parent, id)| json!({ "name": "v0", "vlan": { "parent": parent, "id": id } }));
    let ports = proptest::sample::subsequence(vec!["v0", "eth3"], 0..=2);
    let bridge = (ports, any::<bool>())
        .prop_map(|(ports, stp)| json!({ "name": "br0", "bridge": { "ports": ports, "stp": stp } }));
    let some = |kind: BoxedStrategy<serde_json::Value>| proptest::option::of(kind);
    (some(bond.boxed()), some(vlan.boxed()), some(bridge.boxed())).prop_map(|(bond, vlan, bridge)| {
        let mut links: Vec<serde_json::Value> = [bridge, vlan, bond].into_iter().flatten().collect();
        links.extend((0..4).map(|n| json!({ "match": { "name": format!("eth{n}") } })));
        config(links.into())
    })
}

proptest! {
    /// From any declaration to any other, with hardware that is there or not, in steps that the kernel takes.
    #[test]
    fn planning_after_applying_is_empty(first in stacks(), second in stacks(), hardware in 0..16_u8) {
        let foreign = Link { physical: false, ..link(100, "vpn0") };
        let present = (0..4).filter(|n| hardware & (1 << n) != 0).map(|n| link(n + 2, &format!("eth{n}")));
        let mut links: Vec<Link> = present.chain([foreign.clone()]).collect();
        settle(&first, &mut links);
        settle(&second, &mut links);
        prop_assert!(links.contains(&foreign), "what is unmarked stays untouched");
        let declared: Vec<Made> = wanted(&second, &links);
        for link in links.iter().filter(|link| link.ours) {
            prop_assert!(declared.iter().any(|made| made.name == link.name), "{} is not declared", link.name);
        }
    }
}
