//! The pause container.

fn main() {}
