//! The virtual address against the kernel: machines on a bridge, and somebody who uses the address.
//!
//! Needs root and `ip` (iproute2).

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod scene;

use garboard_plan::virtual_address::{Declared, Standing};

use self::scene::{ADDRESS, DECLARED, Scene};

#[test]
fn the_address_moves_from_an_agent_that_is_killed_and_does_not_come_back() {
    Scene::run(3, |mut scene| {
        let first = scene.start();
        assert_eq!(scene.machines[first].events(), ["VirtualAddressTaken"]);
        let own = scene.machines[first].own();
        scene.soon("everybody to know", |scene| {
            scene.machines.iter().all(|machine| machine.holding().holder == Some(own))
        });
        assert!(scene.machines[first].holding().own);

        scene.machines[first].kill();
        assert!(scene.machines[first].has_address(), "nobody takes it away");
        let second = scene.moved_from(first);
        scene.machines[first].start();
        scene.soon("the former to see that", |scene| scene.holders() == [second]);
        scene.stays(second);
        assert_eq!(scene.machines[first].holding().held(), None);
        assert_eq!(scene.machines[second].holding().held(), Some(ADDRESS));
    });
}

#[test]
fn the_address_moves_from_an_api_server_that_does_not_serve() {
    Scene::run(2, |mut scene| {
        let first = scene.start();
        scene.machines[first].server(Standing::Away, false);
        let second = scene.moved_from(first);
        assert_eq!(scene.holders(), [second]);
        scene.machines[first].server(Standing::Serving, true);
        scene.stays(second);

        // It hangs: it accepts connections still.
        scene.machines[second].server(Standing::Silent, true);
        assert_eq!(scene.moved_from(second), first);
        // All are slow: nothing is won by a move.
        scene.machines[first].server(Standing::Silent, true);
        scene.stays(first);
        for machine in &scene.machines {
            machine.server(Standing::Away, false);
        }
        scene.soon("nobody to have it", |scene| scene.holders().is_empty());
    });
}

#[test]
fn the_address_moves_from_a_link_that_is_down() {
    Scene::run(2, |mut scene| {
        let first = scene.start();
        scene.plug(first, "down");
        let second = scene.moved_from(first);
        scene.soon("the former to let it go", |scene| scene.holders() == [second]);
        scene.soon("the former to say why", |scene| {
            scene.machines[first].holding().problem.is_some_and(|problem| problem == "the link eth0 is down")
        });
        scene.plug(first, "up");
        scene.soon("the former to be back", |scene| scene.machines[first].holding().problem.is_none());
        scene.stays(second);
    });
}

#[test]
fn an_agent_that_ends_in_order_gives_the_address_away() {
    Scene::run(2, |mut scene| {
        let first = scene.start();
        scene.machines[first].stop();
        assert!(!scene.machines[first].has_address());
        scene.moved_from(first);
    });
}

#[test]
fn a_restarted_agent_goes_on_where_it_was_when_nobody_else_has_the_address() {
    Scene::run(1, |mut scene| {
        let only = scene.start();
        scene.machines[only].kill();
        scene.machines[only].unknown();
        scene.machines[only].start();
        scene.stays(only);
        assert!(!scene.machines[only].holding().own, "it does not know yet");
        scene.machines[only].server(Standing::Serving, true);
        scene.soon("it to hold it", |scene| scene.machines[only].holding().own);
        scene.stays(only);
        assert_eq!(scene.machines[only].events(), [] as [&str; 0], "it did not move");
    });
}

#[test]
fn what_a_former_agent_left_is_removed() {
    Scene::run(1, |mut scene| {
        let only = scene.start();
        scene.machines[only].kill();
        scene.machines[only].declared.send_replace(None);
        scene.machines[only].start();
        scene.soon("no address", |scene| !scene.machines[only].has_address());
        let own = format!("inet {}/24", scene.machines[only].own());
        assert!(scene.machines[only].ip("-4 addr show dev eth0").contains(&own));
    });
}

#[test]
fn another_declaration_and_drift_are_followed() {
    Scene::run(1, |mut scene| {
        let only = scene.start();
        let machine = &scene.machines[only];
        machine.ip(&format!("addr del {ADDRESS}/32 dev eth0"));
        scene.soon("the address again", |scene| scene.machines[only].has_address());
        let other = Declared { address: "192.0.2.6".parse().unwrap(), ..DECLARED };
        machine.declared.send_replace(Some(other));
        scene.soon("the other address", |scene| {
            let addresses = scene.machines[only].ip("-4 addr show dev eth0");
            addresses.contains("192.0.2.6/32") && !scene.machines[only].has_address()
        });
        machine.declared.send_replace(Some(Declared { address: machine.own(), ..DECLARED }));
        scene.soon("its own address to be refused", |scene| {
            let problem = scene.machines[only].holding().problem.unwrap_or_default();
            problem.contains("192.0.2.11 is an address of this machine's link eth0")
        });
        let addresses = machine.ip("-4 addr show dev eth0");
        assert!(addresses.contains("192.0.2.11/24") && !addresses.contains("/32"), "{addresses}");
    });
}

#[test]
fn clusters_whose_virtual_routers_have_one_number_do_not_disturb_each_other() {
    Scene::run(2, |mut scene| {
        let other = Declared { address: "192.0.2.6".parse().unwrap(), ..DECLARED };
        scene.machines[1].declared.send_replace(Some(other));
        scene.machines.iter_mut().for_each(|machine| machine.start());
        scene.soon("each to have its own", |scene| {
            scene.holders() == [0] && scene.machines[1].ip("-4 addr show dev eth0").contains("192.0.2.6/32")
        });
        scene.stays(0);
    });
}
