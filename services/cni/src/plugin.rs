//! The CNI plugin: checks what the runtime hands over, asks the daemon, prints its answer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::attachment::{AttachmentId, ContainerId, PortMapping, Protocol};
use crate::interface::InterfaceName;
use crate::loopback;
use crate::spec::{
    AddResult, CniError, Code, Command, Dns, Interface, IpConfig, NetworkConfig, Route, RuntimePort, Version,
    ip_version,
};
use crate::wire::{self, Attached, Request, Response};

/// A runtime's configuration is never longer, bytes.
const MAX_INPUT: u64 = 1024 * 1024;
/// How long a daemon that is being restarted is waited for.
const DAEMON_PATIENCE: Duration = Duration::from_secs(5);
const DAEMON_POLL: Duration = Duration::from_millis(20);
/// How long one operation may take in the daemon.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The prefix of a pod's address: everything else is behind the gateway.
const V4_HOST: u8 = 32;
const V6_HOST: u8 = 128;

/// The environment of a plugin: the `CNI_` variables, the name that it was called by, and where the daemon is.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables by name.
    pub variables: HashMap<String, String>,
    /// The last part of the program's path.
    pub program: String,
    /// The daemon's socket.
    pub socket: PathBuf,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let variables: HashMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("CNI_") || name == "GARBOARD_CNI_SOCKET")
            .collect();
        let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let program = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let socket = variables.get("GARBOARD_CNI_SOCKET").map_or_else(|| wire::SOCKET.into(), PathBuf::from);
        Self { variables, program, socket }
    }

    /// A variable that has a value.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn require(&self, name: &str) -> Result<&str, CniError> {
        self.get(name).ok_or_else(|| CniError::new(Code::InvalidEnvironment, format!("{name} is missing")))
    }

    fn attachment(&self) -> Result<AttachmentId, CniError> {
        let wrong = |error: &dyn std::error::Error| CniError::new(Code::InvalidEnvironment, error.to_string());
        let container = self.require("CNI_CONTAINERID")?.to_owned();
        let interface = self.require("CNI_IFNAME")?.to_owned();
        Ok(AttachmentId {
            container: ContainerId::try_from(container).map_err(|error| wrong(&error))?,
            interface: InterfaceName::try_from(interface).map_err(|error| wrong(&error))?,
        })
    }

    fn netns(&self) -> Result<OwnedFd, CniError> {
        let path = self.require("CNI_NETNS")?;
        let opened =
            File::open(path).map_err(|error| CniError::caused(Code::InvalidNetns, format!("open {path}"), &error));
        Ok(opened?.into())
    }

    /// `namespace/name` of the pod, from kubelet's arguments.
    fn pod(&self) -> Option<String> {
        let arguments: HashMap<&str, &str> =
            self.get("CNI_ARGS")?.split(';').filter_map(|argument| argument.split_once('=')).collect();
        Some(format!("{}/{}", arguments.get("K8S_POD_NAMESPACE")?, arguments.get("K8S_POD_NAME")?))
    }
}

/// Which plugin this program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Garboard,
    Portmap,
    Loopback,
}

impl Kind {
    /// By the configuration's type, or (VERSION has none) by the name that the program was called by.
    fn of(config: &NetworkConfig, program: &str) -> Result<Self, CniError> {
        let name = if config.kind.is_empty() { program } else { &config.kind };
        match name {
            "garboard" | "garboard-cni" => Ok(Self::Garboard),
            "portmap" => Ok(Self::Portmap),
            "loopback" => Ok(Self::Loopback),
            other => {
                Err(CniError::new(Code::InvalidConfig, format!("type {other:?} is not garboard, portmap or loopback")))
            }
        }
    }
}

/// Runs one operation and returns what to print and the exit status.
pub fn run(environment: &Environment, input: impl Read) -> (String, u8) {
    let mut version = Version::default();
    match operate(environment, input, &mut version) {
        Ok(output) => (output, 0),
        Err(error) => (error.render(version), 1),
    }
}

fn operate(environment: &Environment, input: impl Read, version: &mut Version) -> Result<String, CniError> {
    let command = environment.require("CNI_COMMAND")?;
    let command = Command::parse(command).ok_or_else(|| {
        CniError::new(Code::InvalidEnvironment, format!("CNI_COMMAND {command:?} is not an operation"))
    })?;
    let mut text = String::new();
    let read = input.take(MAX_INPUT).read_to_string(&mut text);
    read.map_err(|error| CniError::caused(Code::Io, "read the network configuration", &error))?;
    let config: NetworkConfig = serde_json::from_str(&text)
        .map_err(|error| CniError::caused(Code::Decoding, "decode the network configuration", &error))?;
    if command == Command::Version {
        return Ok(versions(config.cni_version.as_deref()));
    }
    *version = supported(command, config.cni_version.as_deref())?;
    let kind = Kind::of(&config, &environment.program)?;
    if !matches!(command, Command::Status | Command::Gc) && config.name.is_empty() {
        return Err(CniError::new(Code::InvalidConfig, "the network has no name"));
    }
    match kind {
        Kind::Garboard => garboard(environment, command, *version, &config),
        Kind::Portmap => portmap(environment, command, &config),
        Kind::Loopback => loopback(environment, command, *version, &config),
    }
}

fn supported(command: Command, wanted: Option<&str>) -> Result<Version, CniError> {
    let wanted = wanted.unwrap_or("0.1.0");
    let version = Version::ALL.into_iter().find(|version| version.to_string() == wanted).ok_or_else(|| {
        let supported = Version::ALL.map(|version| version.to_string()).join(", ");
        CniError {
            code: Code::IncompatibleVersion,
            msg: format!("CNI version {wanted} is not supported"),
            details: Some(format!("supported are {supported}")),
        }
    })?;
    if version < command.since() {
        let msg = format!("{command:?} needs CNI version {}", command.since());
        return Err(CniError::new(Code::IncompatibleVersion, msg));
    }
    Ok(version)
}

fn versions(asked: Option<&str>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions<'a> {
        cni_version: &'a str,
        supported_versions: [Version; 5],
    }
    let newest = Version::default().to_string();
    let versions = Versions { cni_version: asked.unwrap_or(&newest), supported_versions: Version::ALL };
    serde_json::to_string(&versions).unwrap_or_default()
}

fn garboard(
    environment: &Environment,
    command: Command,
    version: Version,
    config: &NetworkConfig,
) -> Result<String, CniError> {
    let socket = &environment.socket;
    match command {
        Command::Add => {
            let id = environment.attachment()?;
            let (netns, pod) = (environment.netns()?, environment.pod());
            let ports = ports(&config.runtime_config.port_mappings)?;
            let request = Request::Add { id: id.clone(), network: config.name.clone(), pod, ports };
            match ask(socket, &request, Some(&netns))? {
                Response::Attached(attached) => {
                    let sandbox = environment.require("CNI_NETNS")?;
                    render(&result(version, &attached, id.interface.as_str(), sandbox))
                }
                Response::Failed(error) => Err(error),
                Response::Done => Err(CniError::new(Code::Decoding, "the daemon's answer lacks the attachment")),
            }
        }
        Command::Del => quietly(socket, &Request::Del { id: environment.attachment()? }, None),
        Command::Check => {
            let (id, netns) = (environment.attachment()?, environment.netns()?);
            let previous = config.prev_result.as_ref();
            previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "CHECK without prevResult"))?;
            quietly(socket, &Request::Check { id }, Some(&netns))
        }
        Command::Status => quietly(socket, &Request::Status, None),
        Command::Gc => {
            let valid = config.valid_attachments.as_ref().or(config.attachments.as_ref());
            let valid =
                valid.ok_or_else(|| CniError::new(Code::InvalidConfig, "GC without cni.dev/valid-attachments"))?;
            // What has a name that no attachment can have is not one of ours.
            let known = valid.iter().filter_map(|valid| {
                let container = ContainerId::try_from(valid.container.clone()).ok()?;
                let interface = InterfaceName::try_from(valid.interface.clone()).ok()?;
                Some(AttachmentId { container, interface })
            });
            quietly(socket, &Request::Gc { network: config.name.clone(), valid: known.collect() }, None)
        }
        Command::Version => Ok(versions(config.cni_version.as_deref())),
    }
}

/// Host ports as a plugin of their own, behind `garboard` in a chain.
fn portmap(environment: &Environment, command: Command, config: &NetworkConfig) -> Result<String, CniError> {
    let socket = &environment.socket;
    match command {
        Command::Add => {
            let previous = config.prev_result.as_ref();
            let previous = previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "portmap without prevResult"))?;
            let ports = ports(&config.runtime_config.port_mappings)?;
            if !ports.is_empty() {
                quietly(socket, &Request::Ports { id: environment.attachment()?, ports }, None)?;
            }
            render(previous)
        }
        // The attachment's own DEL, CHECK and GC cover its host ports.
        Command::Del | Command::Check | Command::Gc => Ok(String::new()),
        Command::Status => quietly(socket, &Request::Status, None),
        Command::Version => Ok(versions(config.cni_version.as_deref())),
    }
}

fn loopback(
    environment: &Environment,
    command: Command,
    version: Version,
    config: &NetworkConfig,
) -> Result<String, CniError> {
    match command {
        Command::Add => {
            loopback::run(environment.netns()?.as_fd(), false)?;
            match &config.prev_result {
                Some(previous) => render(previous),
                None => render(&loopback::result(version, environment.require("CNI_NETNS")?)),
            }
        }
        Command::Check => loopback::run(environment.netns()?.as_fd(), true).map(|()| String::new()),
        // The interface goes with its namespace.
        Command::Del | Command::Status | Command::Gc => Ok(String::new()),
        Command::Version => Ok(versions(config.cni_version.as_deref())),
    }
}

fn ports(mappings: &[RuntimePort]) -> Result<Vec<PortMapping>, CniError> {
    let mut ports: Vec<PortMapping> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate().filter(|(_, mapping)| mapping.host_port != 0) {
        let wrong = |field: &str, reason: String| {
            CniError::new(Code::InvalidConfig, format!("runtimeConfig.portMappings[{index}].{field}: {reason}"))
        };
        let port = |field: &str, value: i64| {
            let port = u16::try_from(value).ok().filter(|&port| port != 0);
            port.ok_or_else(|| wrong(field, format!("{value} is not a port")))
        };
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(wrong("protocol", format!("{other:?} is not tcp, udp or sctp"))),
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| wrong("hostIP", format!("{text:?} is not an address")))?),
        };
        let mapping = PortMapping {
            host_port: port("hostPort", mapping.host_port)?,
            host_ip,
            container_port: port("containerPort", mapping.container_port)?,
            protocol,
        };
        if ports.iter().any(|other| other.clashes(&mapping)) {
            return Err(wrong("hostPort", format!("{} is mapped twice", mapping.host_port)));
        }
        ports.push(mapping);
    }
    Ok(ports)
}

fn result(version: Version, attached: &Attached, interface: &str, sandbox: &str) -> AddResult {
    let Attached { host_link, mac, mtu_bytes, addresses } = attached;
    let mtu = (version >= Version::V110).then_some(*mtu_bytes);
    let host = Interface { name: host_link.clone(), mac: String::new(), mtu, sandbox: String::new() };
    let pod = Interface { name: interface.to_owned(), mac: mac.to_string(), mtu, sandbox: sandbox.to_owned() };
    let mut result = AddResult {
        cni_version: version,
        interfaces: vec![host, pod],
        ips: Vec::new(),
        routes: Vec::new(),
        dns: Dns {},
    };
    for &(address, gateway) in addresses {
        let prefix = if address.is_ipv4() { V4_HOST } else { V6_HOST };
        let everywhere = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        result.ips.push(IpConfig {
            version: ip_version(version, address),
            interface: 1,
            address: ipnet::IpNet::new_assert(address, prefix),
            gateway: Some(gateway),
        });
        result.routes.push(Route { dst: ipnet::IpNet::new_assert(everywhere, 0), gw: gateway });
    }
    result
}

fn render(value: &impl Serialize) -> Result<String, CniError> {
    serde_json::to_string(value).map_err(|error| CniError::caused(Code::Io, "encode the result", &error))
}

/// An operation that prints nothing when it succeeds.
fn quietly(socket: &Path, request: &Request, netns: Option<&OwnedFd>) -> Result<String, CniError> {
    match ask(socket, request, netns)? {
        Response::Done | Response::Attached(_) => Ok(String::new()),
        Response::Failed(error) => Err(error),
    }
}

fn ask(socket: &Path, request: &Request, netns: Option<&OwnedFd>) -> Result<Response, CniError> {
    let unreachable = |error: &io::Error| {
        let code = if *request == Request::Status { Code::NotAvailable } else { Code::TryAgainLater };
        CniError::caused(code, "the pod network's daemon does not answer", error)
    };
    let patience = if *request == Request::Status { Duration::ZERO } else { DAEMON_PATIENCE };
    let daemon = dial(socket, patience).map_err(|error| unreachable(&error))?;
    let exchange = || {
        wire::set_deadline(&daemon, ANSWER_LIMIT)?;
        wire::send(&daemon, request, netns.map(AsFd::as_fd))?;
        wire::receive::<Response>(&daemon)
    };
    exchange().map(|(response, _)| response).map_err(|error| unreachable(&error))
}

fn dial(socket: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + patience;
    loop {
        match wire::dial(socket) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                thread::sleep(DAEMON_POLL);
            }
            other => return other,
        }
    }
}
