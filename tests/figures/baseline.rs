//! What our boot is compared with: a bare script as init, `baseline-init.sh`, that starts the image's own programs for Kubernetes
//! from the image's own root, on the same kernel, modules and hardware.
//!
//! It has what a node needs to be Ready, and nothing for safety beyond the API server's certificates and RBAC: etcd without TLS,
//! one administrator for all components, no audit log, no encryption of Secrets, no verified root, no isolation of services. Its
//! network has a fixed address, its disk for `/var` is formatted before, and images of pods would come from a registry. The
//! firmware takes its kernel from QEMU, not from the boot loader, so only times from the kernel's start on compare.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use garboard_tests::cluster::Cluster;
use garboard_tests::fresh::Fresh;
use garboard_tests::host::run;
use garboard_tests::image::Image;
use garboard_tests::initrd;
use garboard_tests::machine::{Hardware, Kernel, Machine, Ports};
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::pki::{self, Authority};

/// The script, and its other name in the initrd.
const SCRIPT: &str = include_str!("baseline-init.sh");
const INIT: &str = "baseline/init";

/// What the script says on the console when it has started the API server.
const STARTED: &str = "baseline: the API server is started";

/// Debian's files that go with the script, and where they lie in the initrd.
const FILES: [(&str, &str); 3] = [
    ("/bin/busybox", "bin/busybox"),
    ("/usr/lib/cni/bridge", "baseline/cni/bridge"),
    ("/usr/lib/cni/host-local", "baseline/cni/host-local"),
];

/// Size of the disk for `/var`, bytes.
const VAR_BYTES: u64 = 4 << 30;

/// The API server's addresses: on the machine and as QEMU forwards it, in QEMU's network, and its Service.
const ADDRESSES: [Ipv4Addr; 3] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 96, 0, 1)];

/// What all boots of the baseline share.
pub struct Baseline {
    image: Image,
    kernel: Kernel,
    folder: TempDir,
}

impl Baseline {
    /// Makes the initrd with the script and its certificates.
    ///
    /// # Errors
    /// When a file cannot be made, or a program or file of Debian is missing; `tests/bench` installs those.
    pub fn new(image: &Image) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("garboard-").tempdir().context("make a folder")?;
        let tree = folder.path().join("tree");
        for (source, target) in FILES {
            let target = tree.join(target);
            make_parent(&target)?;
            fs::copy(source, &target).with_context(|| format!("copy {source}"))?;
        }
        symlink("busybox", tree.join("bin/sh")).context("link bin/sh")?;
        write(&tree.join(INIT), SCRIPT)?;
        run(Command::new("chmod").arg("0755").arg(tree.join(INIT)), "")?;
        make_pki(&tree.join("baseline/pki")).context("make certificates")?;

        let mut kernel = initrd::with_files(image, &tree, folder.path())?;
        // The script in place of the verified root.
        let kept = kernel.command_line.split(' ').filter(|word| !word.starts_with("roothash="));
        kernel.command_line = kept.chain([format!("rdinit=/{INIT}").as_str()]).collect::<Vec<_>>().join(" ");
        Ok(Self { image: image.clone(), kernel, folder })
    }

    /// A machine that was never on, with the baseline's kernel and initrd.
    ///
    /// # Errors
    /// When files cannot be made, or no port is free.
    pub fn fresh(&self) -> Result<Fresh> {
        let directory = tempfile::Builder::new().prefix("garboard-").tempdir().context("make a folder")?;
        let ports = Ports::free()?;
        let cluster = Cluster::of_kubeconfig(&self.image, &directory.path().join("cluster"));
        write(&cluster.kubeconfig(), &self.kubeconfig(ports))?;
        let var = directory.path().join("var.raw");
        fs::File::create(&var).and_then(|file| file.set_len(VAR_BYTES)).context("make the disk for /var")?;
        run(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&var), "")?;

        let mut machine = Machine::create(&self.image, &directory.path().join("machine"), Hardware::default(), ports)?;
        machine.set_kernel(Some(self.kernel.clone()));
        machine.add_arguments([
            "-drive",
            &format!("if=none,id=var,format=raw,cache=writeback,discard=unmap,file={}", var.display()),
            "-device",
            "virtio-blk-pci,drive=var,serial=var",
        ]);
        Ok(Fresh { machine, cluster, directory })
    }

    /// Waits until the API server is started, so that asking it is no waste of the processors that the machine runs on.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub fn wait_started(fresh: &Fresh, limit: Duration) -> Result<()> {
        fresh.machine.wait_console(STARTED, limit)
    }

    /// The administrator's way to the API server.
    fn kubeconfig(&self, ports: Ports) -> String {
        let server = format!("https://127.0.0.1:{}", ports.api);
        pki::kubeconfig(&server, &self.folder.path().join("tree/baseline/pki"), "admin")
    }
}

/// An authority, the API server's certificate, the administrator's, and the key of service accounts' tokens.
fn make_pki(folder: &Path) -> Result<()> {
    let authority = Authority::new("baseline")?;
    write(&folder.join("ca.crt"), &authority.certificate)?;
    for (name, leaf) in
        [("server", authority.server(ADDRESSES)?), ("admin", authority.client("admin", pki::ADMINISTRATORS)?)]
    {
        write(&folder.join(format!("{name}.crt")), &leaf.certificate)?;
        write(&folder.join(format!("{name}.key")), &leaf.key)?;
    }
    let accounts = KeyPair::generate()?;
    write(&folder.join("service-account.key"), &accounts.serialize_pem())?;
    write(&folder.join("service-account.pub"), &accounts.public_key_pem())
}

fn write(file: &Path, text: &str) -> Result<()> {
    make_parent(file)?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(file);
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))
}
