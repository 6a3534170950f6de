//! The D-Bus system bus.

fn main() {}
