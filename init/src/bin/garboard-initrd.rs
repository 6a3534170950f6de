//! The first stage.

fn main() {}
