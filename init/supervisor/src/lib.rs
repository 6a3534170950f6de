//! Service specifications and the pure state machine that supervises them.

pub mod spec;
