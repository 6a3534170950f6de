//! PID 1 of a Garboard machine.

fn main() {}
