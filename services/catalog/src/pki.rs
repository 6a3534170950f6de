//! Names and files of the certificates that services use. The node agent makes them and deploys each to a folder of its own.

use garboard_supervisor::spec::ClientFiles;

use crate::paths::PKI_DIR;
use crate::users::{self, User};

/// A certificate with its key: deployed as `tls.crt`, `tls.key` and `ca.crt` (the authority that its bearer trusts), readable by one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    /// What etcd shows to its clients.
    EtcdServer,
    /// What etcd members show to each other.
    EtcdPeer,
    /// The agent's health probe as a client of etcd.
    EtcdProbe,
    /// What kube-apiserver shows to its clients.
    Apiserver,
    /// kube-apiserver as a client of kubelets.
    ApiserverKubeletClient,
    /// kube-apiserver as a client of aggregated API servers.
    FrontProxyClient,
    /// kube-controller-manager, as client and on its own port.
    ControllerManager,
    /// kube-scheduler, as client and on its own port.
    Scheduler,
    /// kubelet as a client.
    Kubelet,
    /// kube-proxy as a client.
    KubeProxy,
    /// Cluster DNS as a client.
    Dns,
    /// The cluster operators as a client.
    Operators,
    /// The node agent as a client.
    Agent,
}

impl Leaf {
    /// Every certificate.
    pub const ALL: [Self; 13] = [
        Self::EtcdServer,
        Self::EtcdPeer,
        Self::EtcdProbe,
        Self::Apiserver,
        Self::ApiserverKubeletClient,
        Self::FrontProxyClient,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Dns,
        Self::Operators,
        Self::Agent,
    ];

    /// Those of a worker: clients of the API server, each with the machine's own keys.
    pub const OF_WORKERS: [Self; 4] = [Self::Kubelet, Self::KubeProxy, Self::Dns, Self::Agent];

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::EtcdServer => "etcd-server",
            Self::EtcdPeer => "etcd-peer",
            Self::EtcdProbe => "etcd-probe",
            Self::Apiserver => "kube-apiserver",
            Self::ApiserverKubeletClient => "kube-apiserver-kubelet-client",
            Self::FrontProxyClient => "front-proxy-client",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Dns => "dns",
            Self::Operators => "operators",
            Self::Agent => "agent",
        }
    }

    /// The user that may read it.
    pub fn owner(self) -> User {
        match self {
            Self::EtcdServer | Self::EtcdPeer => users::ETCD,
            Self::Apiserver | Self::ApiserverKubeletClient | Self::FrontProxyClient => users::KUBE_APISERVER,
            Self::ControllerManager => users::KUBE_CONTROLLER_MANAGER,
            Self::Scheduler => users::KUBE_SCHEDULER,
            Self::Dns => users::DNS,
            Self::Operators => users::OPERATORS,
            Self::EtcdProbe | Self::Kubelet | Self::KubeProxy | Self::Agent => users::ROOT,
        }
    }

    /// Its folder.
    pub fn folder(self) -> String {
        format!("{PKI_DIR}/{}", self.name())
    }

    /// The certificate, PEM.
    pub fn cert_file(self) -> String {
        format!("{}/tls.crt", self.folder())
    }

    /// The key, PEM.
    pub fn key_file(self) -> String {
        format!("{}/tls.key", self.folder())
    }

    /// The authority that the bearer of this certificate verifies its peers with, PEM.
    pub fn ca_file(self) -> String {
        format!("{}/ca.crt", self.folder())
    }

    /// Certificate and key, for a probe.
    pub fn client_files(self) -> ClientFiles {
        ClientFiles { cert_file: self.cert_file().into(), key_file: self.key_file().into() }
    }
}

/// Further files of kube-apiserver: keys that are not certificates.
pub mod apiserver {
    /// Folder of these files.
    pub const DIR: &str = "/run/garboard/pki/kube-apiserver-keys";
    /// Private key that signs service account tokens, PEM.
    pub const SERVICE_ACCOUNT_KEY: &str = "/run/garboard/pki/kube-apiserver-keys/service-account.key";
    /// Public key that verifies service account tokens, PEM.
    pub const SERVICE_ACCOUNT_PUBLIC_KEY: &str = "/run/garboard/pki/kube-apiserver-keys/service-account.pub";
    /// EncryptionConfiguration with the key of Secrets.
    pub const ENCRYPTION_CONFIG: &str = "/run/garboard/pki/kube-apiserver-keys/encryption.json";
    /// Authority of the front proxy's client certificate, PEM.
    pub const FRONT_PROXY_CA: &str = "/run/garboard/pki/kube-apiserver-keys/front-proxy-ca.crt";
}

/// Further files of kube-controller-manager: what it signs with.
pub mod controller_manager {
    /// Folder of these files.
    pub const DIR: &str = "/run/garboard/pki/kube-controller-manager-keys";
    /// Private key that signs service account tokens, PEM.
    pub const SERVICE_ACCOUNT_KEY: &str = "/run/garboard/pki/kube-controller-manager-keys/service-account.key";
    /// Key of the cluster's authority, which signs the certificates that kubelets request, PEM.
    pub const CA_KEY: &str = "/run/garboard/pki/kube-controller-manager-keys/ca.key";
}
