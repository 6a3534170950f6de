//! A sample workload.

fn main() {}
