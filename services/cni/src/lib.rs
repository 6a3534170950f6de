//! The pod network: a CNI plugin and the daemon that does its work.
//!
//! The plugin checks what the runtime hands over, opens the pod's network namespace and sends both to the daemon. The
//! daemon gives the pod an address, a veth pair on the bridge and routes, opens its host ports and keeps a reservation, and
//! it connects the machine to the others' pods, by tunnels where the configuration says so;
//! it does so by netlink alone and starts no program.
//!
//! | task | in | out |
//! |---|---|---|
//! | [`plugin`] | environment, standard input | result on standard output |
//! | [`daemon`] | configuration file, requests | links, table `inet garboard-cni`, reservations, the runtime's conflist |
//!
//! What it makes bears its mark (link alias `garboard-cni`, the routes' protocol, the table's name), and nothing else is changed or removed. The
//! exceptions are the kernel's switches for forwarding, which have no owner.

pub mod allocator;
pub mod attachment;
pub mod backend;
pub mod config;
pub mod configurator;
pub mod conflist;
pub mod daemon;
pub mod firewall;
pub mod host_ports;
pub mod interface;
pub mod loopback;
pub mod netfilter;
pub mod network;
pub mod plugin;
pub mod spec;
pub mod store;
pub mod wire;
