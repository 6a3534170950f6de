//! Kernel adapters: the only home of unsafe code.

#[cfg(feature = "netlink")]
pub mod netlink;
pub mod packet;
