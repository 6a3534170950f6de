//! Kernel parameters that are kept as declared, and given back what they were before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use garboard_plan::kernel::{self as plan, Cause, Parameters, Step};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::passing;

/// What was done to the running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    set: Parameters,
    originals: Parameters,
}

/// Parameters of the running kernel, and what was done to them.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The kernel's parameters: `/proc/sys`.
    directory: PathBuf,
    /// File of the record, which lasts as long as the kernel runs.
    file: PathBuf,
    record: Record,
}

impl Kept {
    /// Continues with the record in `file`.
    pub fn new(directory: PathBuf, file: PathBuf) -> Self {
        let record = passing::load(&file).unwrap_or_default();
        Self { directory, file, record }
    }

    /// Sets what differs from what is declared. Returns what was set, and what could not be, in words.
    pub fn keep(&mut self, declared: &Parameters) -> (Vec<Step>, Vec<String>) {
        let names = declared.keys().chain(self.record.originals.keys());
        let now: BTreeMap<_, _> = names.filter_map(|name| Some((name.clone(), self.read(name).ok()?))).collect();
        let (mut done, mut problems) = (Vec::new(), Vec::new());
        let mut record = self.record.clone();
        record.set.clone_from(declared);
        for step in plan::plan(declared, &self.record.set, &self.record.originals, &now) {
            if step.cause == Cause::Withdrawn && step.before.is_none() {
                // It went with what it was about, such as a link.
                record.originals.remove(&step.name);
                continue;
            }
            match fs::write(self.path(&step.name), &step.value) {
                Ok(()) => {
                    match (step.cause, &step.before) {
                        (Cause::Withdrawn, _) => drop(record.originals.remove(&step.name)),
                        (Cause::Declared, Some(before)) => {
                            record.originals.entry(step.name.clone()).or_insert_with(|| before.clone());
                        }
                        (Cause::Drifted, _) | (Cause::Declared, None) => {}
                    }
                    let Step { name, before, value, cause } = &step;
                    info!(name, before, value, ?cause, "kernel parameter set");
                    done.push(step);
                }
                Err(error) => problems.push(format!("{}: cannot be set to {:?}: {error}", step.name, step.value)),
            }
        }
        if record != self.record {
            self.record = record;
            if let Err(error) = passing::store(&self.file, &self.record) {
                warn!(%error, "what the parameters were before is not recorded");
            }
        }
        (done, problems)
    }

    /// Whether anything is kept.
    pub fn is_in_use(&self) -> bool {
        !self.record.set.is_empty()
    }

    /// Whether somebody has changed what was set.
    pub fn has_drifted(&self) -> bool {
        let differs = |(name, value): (&String, &String)| self.read(name).is_ok_and(|now| !plan::same(&now, value));
        self.record.set.iter().any(differs)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.path(name)).map(|text| text.trim_end().to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(plan::path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_its_link_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("net/ipv6/conf/eth0.5/accept_ra");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "1").unwrap();
        let mut kept = Kept::new(root.path().to_owned(), root.path().join("record.json"));
        let declared = Parameters::from([("net.ipv6.conf.eth0/5.accept_ra".to_owned(), "2".to_owned())]);
        assert_eq!(kept.keep(&declared).0.len(), 1);
        fs::remove_file(&file).unwrap();
        assert_eq!(kept.keep(&Parameters::new()), (vec![], vec![]));
        fs::write(&file, "7").unwrap();
        assert_eq!(kept.keep(&Parameters::new()), (vec![], vec![]), "another link of that name has its own");
        assert_eq!(fs::read_to_string(&file).unwrap(), "7");
    }
}
