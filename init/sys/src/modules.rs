//! Kernel modules: found by name or by a device's alias in what depmod(8) wrote, and loaded with what they depend on.
//!
//! The indexes are read through on each question instead of being kept: they are a megabyte and more of a full kernel, and devices appear
//! seldom.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// `MODULE_INIT_COMPRESSED_FILE`: the kernel decompresses the file itself.
const COMPRESSED: i32 = 4;

/// Parameters that modules are loaded with, whoever asks for them. Bonding would make a link `bond0` that nobody declared.
const PARAMETERS: [(&str, &CStr); 1] = [("bonding", c"max_bonds=0")];

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// An index could not be read.
    #[error("cannot read {path}")]
    Index {
        /// The index.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no such module.
    #[error("there is no kernel module {0:?}")]
    Unknown(String),
    /// The module could not be loaded.
    #[error("cannot load kernel module {path}")]
    Load {
        /// The module's file.
        path: PathBuf,
        /// The kernel's answer; its log says more.
        #[source]
        source: io::Error,
    },
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub struct Modules {
    directory: PathBuf,
    parameters: &'static CStr,
}

/// A plan of files to load, each after those that it depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadPlan {
    /// Files, in order.
    pub files: Vec<PathBuf>,
    /// Names that the index does not have: built into the kernel, or absent.
    pub unknown: Vec<String>,
}

impl Modules {
    /// Those of the running kernel, below `/lib/modules`.
    pub fn of_running_kernel() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self::at(Path::new("/lib/modules").join(release))
    }

    /// Those in a directory that depmod(8) has indexed.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), parameters: c"" }
    }

    /// Loads from now on without waiting until drivers have looked for their devices: those appear later, in any order. Else the slowest
    /// device, such as an empty SATA port, holds up all others.
    #[must_use]
    pub fn with_asynchronous_probe(mut self) -> Self {
        self.parameters = c"async_probe=1";
        self
    }

    /// Names of the modules for any of these aliases, such as the `modalias` of devices.
    ///
    /// # Errors
    /// [`ModuleError::Index`].
    pub fn for_aliases<A: AsRef<str>>(&self, aliases: &[A]) -> Result<BTreeSet<String>, ModuleError> {
        let mut found = BTreeSet::new();
        if aliases.is_empty() {
            return Ok(found);
        }
        let mut sorted: Vec<&str> = aliases.iter().map(AsRef::as_ref).collect();
        sorted.sort_unstable();
        self.each_line("modules.alias", |line| {
            if let Some((pattern, module)) = alias_line(line)
                && candidates(&sorted, pattern).any(|alias| matches(pattern.as_bytes(), alias.as_bytes()))
            {
                found.insert(module.to_owned());
            }
        })?;
        Ok(found)
    }

    /// What to load, in which order, so that all of these modules are there.
    ///
    /// # Errors
    /// [`ModuleError::Index`].
    pub fn plan<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Result<LoadPlan, ModuleError> {
        let names: BTreeSet<String> = names.into_iter().map(|name| normalized(name.as_ref())).collect();
        if names.is_empty() {
            return Ok(LoadPlan::default());
        }
        let mut dependencies = BTreeMap::new();
        self.each_line("modules.dep", |line| {
            // A line names all that its module needs, directly or not: the others' lines are not needed.
            if let Some((file, needed)) = line.split_once(':') {
                let name = module_name(file);
                if names.contains(&name) {
                    dependencies.insert(name, (file.to_owned(), needed.trim().to_owned()));
                }
            }
        })?;
        Ok(plan(&self.directory, &names, &dependencies))
    }

    /// Loads modules by name with what they depend on; what is loaded already, or built in, is passed over. All are tried: the errors are
    /// those of the ones that failed.
    ///
    /// # Errors
    /// [`ModuleError::Index`], alone.
    pub fn load<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Result<Vec<ModuleError>, ModuleError> {
        let loaded = loaded();
        let plan = self.plan(names)?;
        let files = plan.files.iter().filter(|file| !loaded.contains(&module_name(&file.to_string_lossy())));
        Ok(files.filter_map(|file| self.load_file(file).err()).collect())
    }

    /// Loads everything for these aliases, as [`Self::load`].
    ///
    /// # Errors
    /// [`ModuleError::Index`], alone.
    pub fn load_for_aliases<A: AsRef<str>>(&self, aliases: &[A]) -> Result<Vec<ModuleError>, ModuleError> {
        self.load(self.for_aliases(aliases)?)
    }

    /// Loads what the kernel asks for when it runs its helper (`/proc/sys/kernel/modprobe`) with `-q -- NAME`: a name or an alias.
    ///
    /// # Errors
    /// [`ModuleError::Unknown`] when nothing answers to the name, and the first failure to load.
    pub fn load_requested(&self, name: &str) -> Result<(), ModuleError> {
        let mut names = self.for_aliases(&[name])?;
        if names.is_empty() {
            names.insert(name.to_owned());
        }
        let plan = self.plan(&names)?;
        if plan.files.is_empty() {
            return Err(ModuleError::Unknown(name.to_owned()));
        }
        plan.files.iter().try_for_each(|file| self.load_file(file))
    }

    fn load_file(&self, path: &Path) -> Result<(), ModuleError> {
        let failed = |source: io::Error| ModuleError::Load { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let flags = if path.extension().is_some_and(|extension| extension == "ko") { 0 } else { COMPRESSED };
        let name = module_name(&path.to_string_lossy());
        let own = PARAMETERS.iter().find(|(module, _)| *module == name).map(|(_, parameters)| *parameters);
        match rustix::system::finit_module(&file, own.unwrap_or(self.parameters), flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(source) => Err(failed(source.into())),
        }
    }

    fn each_line(&self, index: &str, mut line_read: impl FnMut(&str)) -> Result<(), ModuleError> {
        let path = self.directory.join(index);
        let failed = |source| ModuleError::Index { path: path.clone(), source };
        let mut reader = BufReader::new(File::open(&path).map_err(failed)?);
        let mut line = String::new();
        while reader.read_line(&mut line).map_err(failed)? > 0 {
            line_read(line.trim_end());
            line.clear();
        }
        Ok(())
    }
}

fn plan(directory: &Path, names: &BTreeSet<String>, dependencies: &BTreeMap<String, (String, String)>) -> LoadPlan {
    let mut result = LoadPlan::default();
    let mut done: HashSet<String> = HashSet::new();
    for name in names {
        let Some((file, needed)) = dependencies.get(name) else {
            result.unknown.push(name.clone());
            continue;
        };
        // Read backwards, each comes before what needs it.
        for file in needed.split(' ').filter(|file| !file.is_empty()).rev().chain([file.as_str()]) {
            if done.insert(module_name(file)) {
                result.files.push(directory.join(file));
            }
        }
    }
    result
}

/// Names of the modules that are loaded now.
fn loaded() -> HashSet<String> {
    let text = fs::read_to_string("/proc/modules").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// The name of the module in a file: dashes and underscores are the same to the kernel.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normalized(base.split(".ko").next().unwrap_or(base))
}

fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

fn alias_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("alias ")?.rsplit_once(' ')
}

/// Those of the sorted aliases that begin as the pattern does up to its first wildcard: nearly all others can be passed over unseen.
fn candidates<'a>(sorted: &'a [&'a str], pattern: &'a str) -> impl Iterator<Item = &'a str> {
    let literal = pattern.split(['*', '?', '[']).next().unwrap_or_default();
    let first = sorted.partition_point(|alias| *alias < literal);
    sorted.iter().skip(first).copied().take_while(move |alias| alias.starts_with(literal))
}

/// Whether a text matches a pattern of fnmatch(3) with `*`, `?` and sets such as `[0-9a]`. A pattern that is broken off matches nothing.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when a match fails: behind the last star, one byte later in the text.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            None if t == text.len() => return true,
            None => None,
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'[') => text.get(t).and_then(|&byte| set_matches(pattern.get(p + 1..)?, byte)).map(|len| len + 1),
            Some(b'?') => text.get(t).map(|_| 1),
            Some(&wanted) => text.get(t).filter(|&&byte| byte == wanted).map(|_| 1),
        };
        match (step, retry) {
            (Some(len), _) => {
                p += len;
                t += 1;
            }
            (None, Some((behind_star, from))) if from < text.len() => {
                retry = Some((behind_star, from + 1));
                p = behind_star;
                t = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Whether a set, given without its opening bracket, has the byte; if so, its length with the closing bracket.
fn set_matches(set: &[u8], byte: u8) -> Option<usize> {
    let end = set.iter().position(|&b| b == b']')?;
    let (mut index, mut found) = (0, false);
    let members = set.get(..end)?;
    while let Some(&first) = members.get(index) {
        if let (Some(b'-'), Some(&last)) = (members.get(index + 1), members.get(index + 2)) {
            found |= (first..=last).contains(&byte);
            index += 3;
        } else {
            found |= first == byte;
            index += 1;
        }
    }
    found.then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PCI_NETWORK: &str = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00";

    #[test]
    fn patterns_match_as_fnmatch_does() {
        let cases = [
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4", false),
            ("pci:v*d*sv*sd*bc02sc00i*", PCI_NETWORK, true),
            ("pci:v*d*sv*sd*bc01sc06i01*", PCI_NETWORK, false),
            ("usb:v*p*d*dc*dsc*dp*ic08isc06ip[5-6]0in*", "usb:v0p0d1dc0dsc0dp0ic08isc06ip50in00", true),
            ("usb:v*p*d*dc*dsc*dp*ic08isc06ip[5-6]0in*", "usb:v0p0d1dc0dsc0dp0ic08isc06ip70in00", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a[", "a[", false),
            ("[abc]", "c", true),
            ("**a", "ba", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    fn tree() -> (tempfile::TempDir, Modules) {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "modules.dep",
            "kernel/fs/erofs/erofs.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/lib/libcrc32c.ko.xz\n\
             kernel/fs/netfs/netfs.ko.xz:\n\
             kernel/lib/libcrc32c.ko.xz:\n\
             kernel/crypto/crc32c_generic.ko.xz: kernel/crypto/base.ko\n\
             kernel/crypto/base.ko:\n\
             kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz\n\
             kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n\
             kernel/drivers/md/dm-mod.ko.xz:\n",
        );
        write(
            "modules.alias",
            "# Aliases\nalias virtio:d00000002v* virtio_blk\nalias fs-erofs erofs\nalias fs-* other\n",
        );
        let modules = Modules::at(directory.path());
        (directory, modules)
    }

    fn names(plan: &LoadPlan) -> Vec<String> {
        plan.files.iter().map(|file| module_name(&file.to_string_lossy())).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_directory, modules) = tree();
        let plan = modules.plan(["dm-verity", "erofs", "dm_bufio", "loop"]).unwrap();
        assert_eq!(plan.unknown, ["loop"]);
        let names = names(&plan);
        let place = |name: &str| names.iter().position(|n| n == name).unwrap();
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(place("dm_mod") < place("dm_bufio") && place("dm_bufio") < place("dm_verity"));
        assert!(place("libcrc32c") < place("erofs") && place("netfs") < place("erofs"));
    }

    #[test]
    fn aliases_are_found() {
        let (_directory, modules) = tree();
        let found = modules.for_aliases(&["virtio:d00000002v00001AF4", "fs-erofs", "acpi:PNP0103:"]).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["erofs", "other", "virtio_blk"]);
        assert!(matches!(modules.load_requested("nothing"), Err(ModuleError::Unknown(_))));
        assert!(matches!(Modules::at("/not/there").plan(["a"]), Err(ModuleError::Index { .. })));
    }

    proptest! {
        #[test]
        fn only_what_cannot_match_is_passed_over(
            pattern in "[ab:]{0,4}[*?a]{0,2}[ab]{0,2}",
            mut aliases in proptest::collection::vec("[ab:]{0,6}", 0..8),
        ) {
            aliases.sort();
            let sorted: Vec<&str> = aliases.iter().map(String::as_str).collect();
            let all = sorted.iter().filter(|alias| matches(pattern.as_bytes(), alias.as_bytes())).count();
            let seen = candidates(&sorted, &pattern).filter(|alias| matches(pattern.as_bytes(), alias.as_bytes())).count();
            prop_assert_eq!(all, seen);
        }

        #[test]
        fn any_pattern_ends(pattern in "[a-c*?\\[\\]-]{0,12}", text in "[a-c]{0,12}") {
            let _ = matches(pattern.as_bytes(), text.as_bytes());
        }

        #[test]
        fn texts_match_themselves_and_stars(text in "[a-z0-9:]{0,30}", cut in 0_usize..30) {
            let cut = cut.min(text.len());
            prop_assert!(matches(text.as_bytes(), text.as_bytes()));
            let starred = format!("{}*", &text[..cut]);
            prop_assert!(matches(starred.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_lines_are_read_or_passed_over(line in ".{0,60}") {
            let _ = (alias_line(&line), module_name(&line));
        }
    }
}
