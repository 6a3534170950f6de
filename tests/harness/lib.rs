//! Whole machines for tests: boots the built image in QEMU and talks to it as a user would, with `kubectl` and `garboardctl`.
//!
//! | task | input | output |
//! |---|---|---|
//! | [`image`] | `target/image/latest` | paths of the image's files and of the host's programs |
//! | [`machine`] | an image, a manifest | a running QEMU: console text, power, snapshots |
//! | [`cluster`] | a machine | `kubectl`, `garboardctl`, waiting for conditions of objects |
//! | [`fresh`] | an image | a machine that was never on, with its cluster |
//! | [`host`] | a program of the host | what it printed |
//! | [`initrd`] | an image, files | its kernel and first root with them |
//! | [`registry`] | images | a registry on the host that asks for a user |
//! | [`wait`] | a condition, a limit | its value, or an error that says what was last seen |

pub mod cluster;
pub mod fresh;
pub mod host;
pub mod image;
pub mod initrd;
pub mod lan;
pub mod machine;
pub mod qmp;
pub mod registry;
mod tpm;
pub mod wait;
