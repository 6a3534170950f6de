//! The layers of a machine's configuration and what they come to. This is the only place that knows which layer counts.

use std::collections::BTreeMap;
use std::fmt;

use garboard_api::machine::{Effective, MachineKubelet, MachineLogs, MachineSpec, MachineWatchdog};
use garboard_api::types::read;
use garboard_api::{Cluster, Machine, MachinePool};
use serde_json::{Map, Value};

/// Where a setting comes from, the layer that counts least first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// What the image does unless told otherwise.
    Image,
    /// `machines` of the Cluster.
    Cluster,
    /// The template of the MachinePool of that name.
    MachinePool(String),
    /// The Machine itself.
    Machine,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.write_str("Image"),
            Self::Cluster => f.write_str("Cluster"),
            Self::MachinePool(name) => write!(f, "MachinePool/{name}"),
            Self::Machine => f.write_str("Machine"),
        }
    }
}

/// What the layers come to, and where each setting comes from.
///
/// A mapping is merged entry by entry; anything else, lists too, counts as a whole. An empty list is as good as none.
pub fn merge(machine: &Machine, pool: Option<&MachinePool>, cluster: Option<&Cluster>) -> Effective {
    let pool = pool.map(|pool| {
        let name = pool.metadata.name.clone().unwrap_or_default();
        (Layer::MachinePool(name), settings(&pool.spec.template.spec))
    });
    let cluster = cluster.map(|cluster| (Layer::Cluster, settings(&cluster.spec.machines)));
    let layers = [Some((Layer::Image, settings(&defaults()))), cluster, pool];
    let layers = layers.into_iter().flatten().chain([(Layer::Machine, settings(&machine.spec))]);

    let (mut merged, mut sources) = (Map::new(), BTreeMap::new());
    for (layer, settings) in layers {
        overlay(&mut merged, settings, "", &layer.to_string(), &mut sources);
    }
    // What is merged of valid layers has the form of each of them.
    let mut spec: MachineSpec = read(&Value::Object(merged)).unwrap_or_else(|_| machine.spec.clone());
    // A part is never longer than the whole, whichever layers they come from.
    let critical = spec.kubelet.shutdown_grace_period_critical_pods_seconds();
    spec.kubelet.shutdown_grace_period_critical_pods_seconds = Some(critical);
    Effective { spec, sources }
}

/// What the image does unless told otherwise.
fn defaults() -> MachineSpec {
    let (kubelet, watchdog, logs) = (MachineKubelet::default(), MachineWatchdog::default(), MachineLogs::default());
    MachineSpec {
        kubelet: MachineKubelet {
            max_pods: Some(kubelet.max_pods()),
            shutdown_grace_period_seconds: Some(kubelet.shutdown_grace_period_seconds()),
            shutdown_grace_period_critical_pods_seconds: Some(kubelet.shutdown_grace_period_critical_pods_seconds()),
            ..kubelet
        },
        watchdog: MachineWatchdog { enabled: Some(true), timeout_seconds: watchdog.timeout_seconds() },
        logs: MachineLogs { max_size_mebibytes: Some(logs.max_size_mebibytes()), max_files: Some(logs.max_files()) },
        ..MachineSpec::default()
    }
}

/// What a layer sets: fields that are not set are not there.
fn settings(spec: &MachineSpec) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(settings)) => settings,
        _ => Map::new(),
    }
}

fn overlay(
    lower: &mut Map<String, Value>,
    upper: Map<String, Value>,
    path: &str,
    layer: &str,
    sources: &mut BTreeMap<String, String>,
) {
    for (name, value) in upper {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match value {
            Value::Object(fields) => {
                let below = lower.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(below) = below {
                    overlay(below, fields, &path, layer, sources);
                }
            }
            value => {
                sources.insert(path, layer.to_owned());
                lower.insert(name, value);
            }
        }
    }
}

/// The pool of a machine: the one whose selector picks it.
///
/// # Errors
/// The names of the pools when more than one does.
pub fn pool_of<'a>(
    machine: &Machine,
    pools: impl IntoIterator<Item = &'a MachinePool>,
) -> Result<Option<&'a MachinePool>, Vec<String>> {
    let labels = machine.metadata.labels.clone().unwrap_or_default();
    let picking: Vec<&MachinePool> = pools.into_iter().filter(|pool| pool.picks(&labels)).collect();
    match picking[..] {
        [] => Ok(None),
        [pool] => Ok(Some(pool)),
        _ => {
            let mut names: Vec<String> = picking.iter().filter_map(|pool| pool.metadata.name.clone()).collect();
            names.sort();
            Err(names)
        }
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
