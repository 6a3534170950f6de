//! The pod network: CNI plugin and daemon.

fn main() {}
