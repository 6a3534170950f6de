//! containerd: pulls images and runs containers, by request of kubelet.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use garboard_api::machine::Registry;
use garboard_supervisor::spec::{Isolation, ProbeAction, Seccomp, ServiceSpec, Slice};

use crate::base::{Args, blank, cgroup, liveness, private_directory, private_file, readiness};
use crate::paths::{self, service_file};
use crate::{CatalogError, CatalogInput, users};

/// The service's name.
pub const NAME: &str = "containerd";

/// Plugins that this machine has no use for: other snapshotters, what watches containers in kubelet's place, and tracing.
const DISABLED_PLUGINS: [&str; 10] = [
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.differ.v1.erofs",
    "io.containerd.mount-handler.v1.erofs",
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.tracing.processor.v1.otlp",
];

/// The specification of containerd.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let config_file = service_file(NAME, "config.toml");
    let args = Args::new("/usr/bin/containerd").flag("config", &config_file);
    let mut limits = cgroup(Slice::System, -999, 8192, 32, 96);
    limits.cpu_weight = Some(200);

    let mut spec = blank(NAME, users::ROOT, limits, args.into_vec())?;
    // It finds runc, its shim and mount helpers by this path.
    spec.env.insert("PATH".to_owned(), "/usr/bin:/usr/sbin:/bin:/sbin".to_owned());
    spec.directories.push(private_directory("/var/lib/containerd"));
    let registries = registries_dir(&input.machine.registries);
    spec.files.push(private_file(config_file, config(input, &registries)));
    spec.directories.push(private_directory(&registries));
    for registry in &input.machine.registries {
        let folder = format!("{registries}/{}", registry.host);
        spec.directories.push(private_directory(&folder));
        spec.files.push(private_file(format!("{folder}/hosts.toml"), hosts(registry, &folder)));
        spec.files.extend(registry.ca.iter().map(|ca| private_file(ca_file(&folder), ca.clone())));
    }
    open_isolation(&mut spec.isolation);
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    spec.liveness = Some(liveness(ProbeAction::Unix { path: paths::CONTAINERD_SOCKET.into() }));
    Ok(spec)
}

/// What a program needs that makes mounts, devices and namespaces for containers: the machine itself.
pub(crate) fn open_isolation(isolation: &mut Isolation) {
    *isolation = Isolation {
        private_mounts: false,
        read_write: Vec::new(),
        inaccessible: Vec::new(),
        private_tmp: false,
        private_devices: false,
        // runc drops what a container must not have; here it would keep setuid programs from working in every container.
        no_new_privileges: false,
        capabilities: None,
        seccomp: Seccomp::Unconfined,
    };
}

/// Where containerd looks for how to reach registries. Other registries have another folder, as nothing removes what is no longer
/// declared.
fn registries_dir(registries: &[Registry]) -> String {
    let mut hasher = DefaultHasher::new();
    for Registry { host, mirrors, ca, credentials: _ } in registries {
        (host, mirrors, ca).hash(&mut hasher);
    }
    service_file(NAME, &format!("registries-{:016x}", hasher.finish()))
}

fn ca_file(folder: &str) -> String {
    format!("{folder}/ca.crt")
}

/// How to reach a registry, in the form of containerd's `hosts.toml`.
fn hosts(registry: &Registry, folder: &str) -> String {
    // Who the machine is to it is for kubelet to say.
    let Registry { host, mirrors, ca, credentials: _ } = registry;
    let ca = ca.as_ref().map(|_| format!("ca = \"{}\"\n", ca_file(folder))).unwrap_or_default();
    // The one registry whose name is not where it is.
    let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let mut text = format!("server = \"https://{server}\"\n{ca}");
    for mirror in mirrors {
        text += &format!("\n[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{ca}");
    }
    text
}

fn config(input: &CatalogInput, registries: &str) -> String {
    let disabled = DISABLED_PLUGINS.map(|plugin| format!("  \"{plugin}\",\n")).concat();
    let pause = &input.pause_image;
    let conf_dir = paths::CNI_CONF_DIR;
    let bin_dir = paths::CNI_BIN_DIR;
    let shims = paths::SHIMS_CGROUP;
    format!(
        r#"version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
{disabled}]

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  discard_unpacked_layers = true

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{registries}"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
  cdi_spec_dirs = ["/run/cdi"]
  device_ownership_from_security_context = true
  enable_criu = false
  # Debian's kernel has AppArmor; the image has no profile parser to load one with.
  disable_apparmor = true
  # kubelet asks every ten seconds; measuring more often only costs power.
  stats_collect_period = "10s"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{bin_dir}"]
  conf_dir = "{conf_dir}"

[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/runc"
  ShimCgroup = "{shims}"
  SystemdCgroup = false
"#
    )
}
