//! The node agent and the cluster operators.

fn main() {}
