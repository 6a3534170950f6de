//! One machine in QEMU.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use garboard_tpm::testing::Swtpm;
use jiff::Timestamp;
use serde_json::json;

use crate::host::run;
use crate::image::{Image, top};
use crate::lan::Lan;
use crate::qmp::Qmp;
use crate::tpm;
use crate::wait;

/// Longest time that one QMP command may take; saving a snapshot writes the memory.
const QMP_LIMIT: Duration = Duration::from_secs(120);

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Size of the disk, GiB.
    pub disk_gib: u32,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// Arguments after all others.
    pub extra: Vec<String>,
}

impl Default for Hardware {
    fn default() -> Self {
        Self { memory_mib: 3072, cpus: 2, disk_gib: 8, tpm: false, extra: Vec::new() }
    }
}

/// What the firmware starts in place of the disk's boot loader.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel, with its EFI stub.
    pub image: PathBuf,
    /// Its first root.
    pub initrd: PathBuf,
    /// Its command line.
    pub command_line: String,
}

/// How a machine is connected to a network that it shares.
struct Link {
    netdev: String,
    mac: String,
}

/// A machine with a disk of its own over the built image; its QEMU ends when this is dropped.
pub struct Machine {
    directory: PathBuf,
    hardware: Hardware,
    ports: Ports,
    manifests: Option<PathBuf>,
    kernel: Option<Kernel>,
    link: Option<Link>,
    boots: u32,
    qemu: Option<Child>,
    tpm: Option<Swtpm>,
}

/// The host's ports that lead into a machine.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// To the API server.
    pub api: u16,
    /// To the machine API.
    pub machine: u16,
}

impl Ports {
    /// Two ports that are free now.
    ///
    /// # Errors
    /// When the host gives none.
    pub fn free() -> Result<Self> {
        // Both are held until both are known, so that they differ.
        let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        Ok(Self { api: one.local_addr()?.port(), machine: two.local_addr()?.port() })
    }
}

impl Machine {
    /// Makes the machine's disk and firmware variables in `directory`; it is not started.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn create(image: &Image, directory: &Path, hardware: Hardware, ports: Ports) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let backing = image.disk().canonicalize().context("find the image")?;
        let size = format!("{}G", hardware.disk_gib);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            path(&backing)?,
            path(&directory.join("disk.qcow2"))?,
            &size,
        ])?;
        let variables = firmware("VARS")?;
        qemu_img(&[
            "convert",
            "-q",
            "-f",
            "raw",
            "-O",
            "qcow2",
            path(&variables)?,
            path(&directory.join("vars.qcow2"))?,
        ])?;
        Ok(Self {
            directory: directory.to_path_buf(),
            hardware,
            ports,
            manifests: None,
            kernel: None,
            link: None,
            boots: 0,
            qemu: None,
            tpm: None,
        })
    }

    /// Gives the machine this file of manifests at its next start; none takes it away.
    pub fn set_manifests(&mut self, file: Option<PathBuf>) {
        self.manifests = file;
    }

    /// Starts this kernel from now on, not what the disk would boot; none: what the disk would.
    pub fn set_kernel(&mut self, kernel: Option<Kernel>) {
        self.kernel = kernel;
    }

    /// Connects the machine to a network that it shares, from its next start on, as the one with this number, from 1, there. Its own ports lead
    /// nowhere then: those of the network count.
    pub fn connect(&mut self, lan: &Lan, number: u8) {
        self.link = Some(Link { netdev: lan.netdev("n0", number), mac: Self::mac_address(number) });
    }

    /// The hardware address of the machine with this number on a shared network.
    pub fn mac_address(number: u8) -> String {
        format!("52:54:00:12:34:{number:02x}")
    }

    /// Gives QEMU these arguments too, from the next start on.
    pub fn add_arguments<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) {
        self.hardware.extra.extend(arguments.into_iter().map(str::to_owned));
    }

    /// The host's ports that lead into it.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The machine's disk, as qcow2.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// What its TPM, if it has one, is known by; the machine is off.
    ///
    /// # Errors
    /// When the TPM does not start.
    pub fn endorsement_key(&self) -> Result<String> {
        ensure!(self.hardware.tpm && self.qemu.is_none(), "the machine has no TPM, or is on");
        tpm::endorsement_key(&self.tpm_folder())
    }

    /// Powers on.
    ///
    /// # Errors
    /// When QEMU does not start; with what it printed.
    pub fn start(&mut self) -> Result<()> {
        self.launch(&[])
    }

    /// Powers on with the hardware's clock at this time.
    ///
    /// # Errors
    /// When QEMU does not start; with what it printed.
    pub fn start_at(&mut self, clock: Timestamp) -> Result<()> {
        self.launch(&["-rtc", &format!("base={}", clock.strftime("%Y-%m-%dT%H:%M:%S"))])
    }

    fn launch(&mut self, more: &[&str]) -> Result<()> {
        ensure!(self.qemu.is_none(), "the machine is already on");
        self.boots += 1;
        let socket = self.qmp_socket();
        if socket.exists() {
            fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
        }
        // The last start's ends first.
        self.tpm = None;
        if self.hardware.tpm {
            self.tpm = Some(tpm::start(&self.tpm_folder())?);
        }
        let complaints = fs::File::create(self.directory.join("qemu.log")).context("make qemu.log")?;
        let qemu = Command::new("qemu-system-x86_64")
            .args(self.arguments()?)
            .args(self.tpm.iter().flat_map(tpm::arguments))
            .args(more)
            .stdin(Stdio::null())
            .stdout(complaints.try_clone().context("share qemu.log")?)
            .stderr(complaints)
            .spawn()
            .context("start qemu-system-x86_64: is it installed? image/build installs it")?;
        self.qemu = Some(qemu);
        wait::until("QEMU to listen", Duration::from_secs(20), || {
            if let Some(status) = self.exit_status() {
                return Ok(Err(status));
            }
            Qmp::connect(&socket, QMP_LIMIT).map(|_| Ok(())).map_err(|error| error.to_string())
        })?
        .map_err(|status| anyhow::anyhow!("QEMU ended with {status}: {}", self.complaints()))
    }

    /// Cuts the power: what the machine has not written is gone.
    ///
    /// # Errors
    /// When the machine is off, or its process cannot be killed.
    pub fn cut_power(&mut self) -> Result<()> {
        let mut qemu = self.qemu.take().context("the machine is off")?;
        qemu.kill().context("kill QEMU")?;
        qemu.wait().context("wait for QEMU")?;
        Ok(())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn press_power_button(&self) -> Result<()> {
        self.qmp()?.execute("system_powerdown", &json!({})).map(drop)
    }

    /// Presses control, alt and delete on the keyboard.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn press_ctrl_alt_delete(&self) -> Result<()> {
        let keys: Vec<_> =
            ["ctrl", "alt", "delete"].iter().map(|key| json!({ "type": "qcode", "data": key })).collect();
        self.qmp()?.execute("send-key", &json!({ "keys": keys })).map(drop)
    }

    /// Takes its cable out, or puts it in again.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn plug(&self, up: bool) -> Result<()> {
        self.qmp()?.execute("set_link", &json!({ "name": "n0", "up": up })).map(drop)
    }

    /// Saves memory and disk under a name.
    ///
    /// # Errors
    /// What QEMU said against it.
    pub fn save(&self, name: &str) -> Result<()> {
        self.qmp()?.monitor(&format!("savevm {name}"))
    }

    /// Returns to a saved state.
    ///
    /// In a new QEMU: one that goes on emulating sets its timers back, but not its time stamp counter, and the machine would see its
    /// clock leap by the time since it was saved.
    ///
    /// # Errors
    /// When QEMU does not start from it; with what it printed.
    pub fn load(&mut self, name: &str) -> Result<()> {
        self.qmp()?.execute("quit", &json!({}))?;
        self.wait_off(QMP_LIMIT)?;
        self.launch(&["-loadvm", name])
    }

    /// Waits until the machine has powered itself off.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        wait::until("the machine to power off", limit, || self.exit_status().map(drop).ok_or_else(|| "on".to_owned()))?;
        self.qemu = None;
        Ok(())
    }

    /// Whether QEMU runs.
    pub fn is_on(&mut self) -> bool {
        self.qemu.is_some() && self.exit_status().is_none()
    }

    /// All that the serial console of the current boot has shown.
    pub fn console(&self) -> String {
        fs::read(self.console_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until the console shows `text`.
    ///
    /// # Errors
    /// When it does not within `limit`; with the console's end.
    pub fn wait_console(&self, text: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("{text:?} on the console"), limit, || {
            let console = self.console();
            if console.contains(text) { Ok(()) } else { Err(tail(&console, 12)) }
        })
    }

    /// What the screen of a machine that waits shows of it: its address, and its key.
    ///
    /// # Errors
    /// When it does not within `limit`; with the console's end.
    pub fn wait_waiting(&self, limit: Duration) -> Result<(Ipv4Addr, String)> {
        self.wait_console("garboardctl claim", limit)?;
        wait::until("an address on the console", limit, || {
            let console = self.console();
            let last = |label: &str| {
                let found = console.lines().rev().find_map(|line| line.trim().strip_prefix(label));
                // A line ends with a control sequence.
                found.and_then(|rest| rest.split([' ', ',', '\x1b']).find(|word| !word.is_empty())).map(str::to_owned)
            };
            let address = last("address ").and_then(|address| address.parse().ok());
            let key = last("key ").filter(|key| key.len() == "sha256:".len() + 64);
            address.zip(key).ok_or_else(|| tail(&console, 12))
        })
    }

    /// The console's last lines, for an error.
    pub fn console_end(&self) -> String {
        tail(&self.console(), 30)
    }

    fn exit_status(&mut self) -> Option<std::process::ExitStatus> {
        self.qemu.as_mut().and_then(|qemu| qemu.try_wait().ok().flatten())
    }

    fn complaints(&self) -> String {
        fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default()
    }

    fn console_file(&self) -> PathBuf {
        self.directory.join(format!("console-{}.log", self.boots))
    }

    fn tpm_folder(&self) -> PathBuf {
        self.directory.join("tpm")
    }

    fn qmp_socket(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.qmp_socket(), QMP_LIMIT)
    }

    fn arguments(&self) -> Result<Vec<String>> {
        let code = firmware("CODE")?;
        let Accelerator { arguments: accelerator, kernel_arguments } = accelerator();
        let mut arguments: Vec<String> = accelerator.iter().map(|argument| (*argument).to_owned()).collect();
        let Hardware { memory_mib, cpus, disk_gib: _, tpm: _, extra } = &self.hardware;
        let Ports { api, machine } = self.ports;
        let directory = path(&self.directory)?;
        let console = self.console_file();
        let mut push = |arguments_of: &[&str]| arguments.extend(arguments_of.iter().map(|a| (*a).to_owned()));
        push(&["-m", &memory_mib.to_string(), "-smp", &cpus.to_string(), "-nodefaults", "-display", "none"]);
        push(&["-drive", &format!("if=pflash,format=raw,readonly=on,file={}", path(&code)?)]);
        push(&["-drive", &format!("if=pflash,format=qcow2,file={directory}/vars.qcow2")]);
        push(&["-drive", &format!("if=virtio,format=qcow2,cache=writeback,discard=unmap,file={directory}/disk.qcow2")]);
        match &self.link {
            Some(Link { netdev, mac }) => {
                push(&["-netdev", netdev, "-device", &format!("virtio-net-pci,netdev=n0,mac={mac}")]);
            }
            None => {
                let forwards = format!("hostfwd=tcp:127.0.0.1:{api}-:6443,hostfwd=tcp:127.0.0.1:{machine}-:7443");
                push(&["-netdev", &format!("user,id=n0,{forwards}"), "-device", "virtio-net-pci,netdev=n0"]);
            }
        }
        push(&["-device", "virtio-rng-pci"]);
        push(&["-device", "i6300esb", "-action", "watchdog=reset"]);
        push(&["-serial", &format!("file:{}", path(&console)?)]);
        push(&["-qmp", &format!("unix:{directory}/qmp.sock,server=on,wait=off")]);
        match &self.kernel {
            Some(Kernel { image, initrd, command_line }) => {
                push(&["-kernel", path(image)?, "-initrd", path(initrd)?]);
                push(&["-append", &[&[command_line.as_str()], kernel_arguments].concat().join(" ")]);
            }
            None => {
                for argument in kernel_arguments {
                    push(&["-smbios", &format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={argument}")]);
                }
            }
        }
        if let Some(manifests) = &self.manifests {
            push(&["-fw_cfg", &format!("name=opt/dev.garboard/manifests,file={}", path(manifests)?)]);
        }
        arguments.extend(extra.iter().cloned());
        Ok(arguments)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.qemu.is_some() && self.cut_power().is_err() {
            eprintln!("the QEMU of {} could not be ended", self.directory.display());
        }
    }
}

/// How this host runs a machine.
struct Accelerator {
    /// For QEMU.
    arguments: &'static [&'static str],
    /// For the machine's kernel.
    kernel_arguments: &'static [&'static str],
}

/// Whether this host emulates the processors of machines. `image/boot` decides by a trial, so that both agree.
pub fn is_emulated() -> bool {
    let trial = Command::new(top().join("image/boot")).arg("accelerator").stdin(Stdio::null()).output();
    !trial.is_ok_and(|trial| trial.status.success() && trial.stdout.starts_with(b"kvm"))
}

fn accelerator() -> Accelerator {
    if is_emulated() {
        Accelerator {
            arguments: &["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "Nehalem"],
            // An emulated processor has none of the faults that mitigations guard against.
            kernel_arguments: &["mitigations=off"],
        }
    } else {
        Accelerator { arguments: &["-machine", "q35,accel=kvm", "-cpu", "host"], kernel_arguments: &[] }
    }
}

/// The UEFI firmware's file of this kind (`CODE` or `VARS`).
fn firmware(kind: &str) -> Result<PathBuf> {
    let candidates = [format!("/usr/share/OVMF/OVMF_{kind}_4M.fd"), format!("/usr/share/OVMF/OVMF_{kind}.fd")];
    candidates.iter().map(PathBuf::from).find(|file| file.exists()).context("no OVMF firmware: image/build installs it")
}

fn qemu_img(arguments: &[&str]) -> Result<()> {
    run(Command::new("qemu-img").args(arguments), "").map(drop)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
