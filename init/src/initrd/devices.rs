//! Devices appear: their modules are loaded, and each new disk is looked at until one has the root.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use garboard_sys::block::{self, BlockDevice};
use garboard_sys::dm;
use garboard_sys::gpt::{GptError, Guid, Table};
use garboard_sys::kmsg::{Level, Writer};
use garboard_sys::modules::{ModuleError, Modules};
use garboard_sys::uevent::{self, Listener, UeventError};
use garboard_sys::verity::RootHash;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::FirstStageError;
use super::report::{Report, chain};

/// What no device asks for: the verified device and the root's file system.
const ALWAYS: [&str; 3] = ["dm-mod", "dm-verity", "erofs"];

/// Partition tables of CDs count in these, although the medium's sectors are larger.
const GPT_SECTOR_ON_CD: u32 = 512;

/// After this time without a root the consoles say what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// Where the root was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The disk's node.
    pub disk: PathBuf,
    /// The label of the root's partition.
    pub slot: String,
    /// The data partition's node.
    pub data: PathBuf,
    /// The hash partition's node.
    pub hash: PathBuf,
}

/// While it is held, the kernel asks this program for modules.
pub struct KernelHelper {
    before: Option<String>,
}

impl KernelHelper {
    /// Names this program as the kernel's helper.
    pub fn take_over() -> Self {
        let before = fs::read_to_string(MODPROBE).ok();
        // A kernel without modules has no such file.
        let _ = fs::write(MODPROBE, "/init");
        Self { before }
    }

    /// Names the helper of before again: this program is about to vanish.
    pub fn give_back(self) {
        if let Some(before) = self.before {
            let _ = fs::write(MODPROBE, before.trim_end());
        }
    }
}

/// The kernel's request for a module, with arguments `-q -- NAME`.
pub fn load_for_kernel(arguments: impl Iterator<Item = String>) -> ExitCode {
    let arguments: Vec<String> = arguments.collect();
    let Some(name) = arguments.last() else { return ExitCode::FAILURE };
    match Modules::of_running_kernel().load_requested(name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if is_news(&error, &arguments)
                && let Ok(mut log) = Writer::open("garboard-initrd")
            {
                log.log(Level::Debug, &chain(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether a failed request is worth a message. The kernel asks for many names that do not exist, such as better versions
/// of what it has, and says so by `-q` (modprobe(8)); who leaves that out wants to know.
fn is_news(error: &ModuleError, arguments: &[String]) -> bool {
    let quiet = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "-q");
    !(quiet && matches!(error, ModuleError::Unknown(_)))
}

/// Waits until a disk has both partitions of the root hash and the kernel has nodes for them.
///
/// # Errors
/// [`FirstStageError::RootNotFound`] after the deadline, and when devices cannot be watched at all.
pub fn find_root(root: RootHash, deadline: Duration, report: &mut Report) -> Result<Found, FirstStageError> {
    let begun = Instant::now();
    let listener = Listener::open()?;
    let modules = Modules::of_running_kernel().with_asynchronous_probe();
    // Checking signatures takes the kernel a while: the processors share it.
    let always = {
        let modules = modules.clone();
        std::thread::spawn(move || modules.load(ALWAYS))
    };
    log_failures(modules.load_for_aliases(&uevent::present_modaliases()), report);
    if let Ok(result) = always.join() {
        log_failures(result, report);
    }
    let mut search = Search { root, seen: Vec::new(), repaired: Vec::new() };
    let mut told = false;
    let mut look = true;
    loop {
        if look && let Some(found) = search.look(report)? {
            return Ok(found);
        }
        let limit = if told { deadline } else { PATIENCE };
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() && told {
            return Err(search.failed());
        }
        if left.is_zero() {
            told = true;
            report.say(
                Level::Warning,
                &format!("waiting for the disk with root hash {root}, up to {} s", deadline.as_secs()),
            );
            look = true;
            continue;
        }
        wait(&listener, left)?;
        look = take_events(&listener, &modules, report)?;
    }
}

/// Modules that fail are only logged: the root may be reached without them.
fn log_failures(result: Result<Vec<ModuleError>, ModuleError>, report: &mut Report) {
    match result {
        Ok(failed) => failed.iter().for_each(|error| report.log(Level::Warning, &chain(error))),
        Err(error) => report.log(Level::Warning, &chain(&error)),
    }
}

fn wait(listener: &Listener, time: Duration) -> Result<(), FirstStageError> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(source) => Err(FirstStageError::Wait(source.into())),
    }
}

/// Loads modules for what has appeared; returns whether a block device is among it.
fn take_events(listener: &Listener, modules: &Modules, report: &mut Report) -> Result<bool, FirstStageError> {
    let mut aliases = Vec::new();
    let mut block_changed = false;
    loop {
        match listener.next_event() {
            Ok(Some(event)) => {
                block_changed |= event.subsystem() == Some("block");
                if event.action == "add" {
                    aliases.extend(event.modalias().map(str::to_owned));
                }
            }
            Ok(None) => break,
            // Messages were lost: everything is looked at again.
            Err(UeventError::Receive(error)) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                aliases.extend(uevent::present_modaliases());
                block_changed = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    aliases.sort();
    aliases.dedup();
    log_failures(modules.load_for_aliases(&aliases), report);
    Ok(block_changed)
}

struct Search {
    root: RootHash,
    /// Disks of the last look, in words.
    seen: Vec<String>,
    /// Disks whose first table copy was written again; each once.
    repaired: Vec<String>,
}

impl Search {
    fn look(&mut self, report: &mut Report) -> Result<Option<Found>, FirstStageError> {
        self.seen.clear();
        let devices = block::list()?;
        for disk in devices.iter().filter(|device| device.is_disk()) {
            match self.look_at(disk, &devices, report) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => self.seen.push(format!("{}: {}", disk.name, chain(&error))),
            }
        }
        Ok(None)
    }

    fn look_at(
        &mut self,
        disk: &BlockDevice,
        devices: &[BlockDevice],
        report: &mut Report,
    ) -> Result<Option<Found>, FirstStageError> {
        let path = disk.path();
        let file = File::open(&path).map_err(|source| FirstStageError::Read { device: path.clone(), source })?;
        let (table, health, mapped) = match Table::read(&file, disk.sector_bytes, disk.size_bytes) {
            Ok((table, health)) => (table, health, false),
            Err(_) if disk.sector_bytes != GPT_SECTOR_ON_CD => {
                match Table::read(&file, GPT_SECTOR_ON_CD, disk.size_bytes) {
                    Ok((table, health)) => (table, health, true),
                    Err(error) => return self.passed_over(disk, &error),
                }
            }
            Err(error) => return self.passed_over(disk, &error),
        };
        let uuids = [self.root.data_uuid(), self.root.hash_uuid()].map(Guid::from_bytes);
        let [Some(data), Some(hash)] = uuids.map(|uuid| table.by_uuid(uuid)) else {
            self.seen.push(format!("{} has other partitions", disk.name));
            return Ok(None);
        };
        let slot = data.label.clone();
        if mapped {
            let map =
                |name, partition| map_partition(name, &path, table.start_bytes(partition), table.size_bytes(partition));
            let found = Found {
                slot,
                data: map("garboard-root-data", data)?,
                hash: map("garboard-root-hash", hash)?,
                disk: path,
            };
            return Ok(Some(found));
        }
        if !health.primary && !self.repaired.contains(&disk.name) {
            // The power was cut while the table was written. The kernel looks only at the first copy.
            self.repaired.push(disk.name.clone());
            report.say(Level::Warning, &format!("repairing the partition table of {}", path.display()));
            repair(&table, &path, report);
        }
        let node = |number| {
            let mut nodes = devices.iter();
            nodes
                .find(|d| d.partition.as_ref().is_some_and(|p| p.disk == disk.name && p.number == number))
                .map(BlockDevice::path)
        };
        match (node(data.number), node(hash.number)) {
            (Some(data), Some(hash)) => Ok(Some(Found { disk: path, slot, data, hash })),
            _ => {
                self.seen.push(format!("the kernel does not show the partitions of {} yet", disk.name));
                Ok(None)
            }
        }
    }

    fn passed_over(&mut self, disk: &BlockDevice, error: &GptError) -> Result<Option<Found>, FirstStageError> {
        self.seen.push(format!("{}: {}", disk.name, chain(error)));
        Ok(None)
    }

    fn failed(self) -> FirstStageError {
        let seen = if self.seen.is_empty() { "there is no disk at all".to_owned() } else { self.seen.join("; ") };
        FirstStageError::RootNotFound { root: self.root, uuid: Guid::from_bytes(self.root.data_uuid()), seen }
    }
}

fn repair(table: &Table, path: &Path, report: &mut Report) {
    let result =
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| error.to_string()).and_then(|mut disk| {
            table.write(&mut disk).map_err(|error| chain(&error))?;
            block::reread_partitions(&disk, path).map_err(|error| chain(&error))
        });
    if let Err(error) = result {
        report.say(Level::Error, &format!("cannot repair the partition table of {}: {error}", path.display()));
    }
}

/// Makes a device of a part of a disk for which the kernel has no partition nodes.
fn map_partition(name: &str, disk: &Path, start: u64, size: u64) -> Result<PathBuf, FirstStageError> {
    let parameters = format!("{} {}", disk.display(), start / 512);
    let target = dm::Target { kind: "linear", sectors: size / 512, parameters: &parameters };
    Ok(dm::create_read_only(name, &target)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_kernel_tries_are_passed_over_in_silence() {
        let unknown = || ModuleError::Unknown("nft-expr-1-masq".to_owned());
        let broken = || ModuleError::Load { path: "a.ko".into(), source: std::io::ErrorKind::InvalidData.into() };
        let cases = [
            ("the kernel, no such module", unknown(), "-q -- nft-expr-1-masq", false),
            ("the kernel, a module that does not load", broken(), "-q -- a", true),
            ("a program, no such module", unknown(), "nft-expr-1-masq", true),
            ("a module of that name", unknown(), "-- -q", true),
        ];
        for (name, error, arguments, expected) in cases {
            let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
            assert_eq!(is_news(&error, &arguments), expected, "{name}");
        }
    }
}
