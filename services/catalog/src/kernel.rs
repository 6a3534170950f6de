//! What the kernel must be told before the services run: settings and modules, as data for whoever applies it.

use crate::ProxyMode;

/// A kernel setting by its path below `/proc/sys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub path: &'static str,
    /// Value written.
    pub value: &'static str,
}

const fn sysctl(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value }
}

/// Settings that kubelet checks at its start (`protectKernelDefaults`) and refuses to run without.
pub const KUBELET_SYSCTLS: [Sysctl; 6] = [
    sysctl("vm/overcommit_memory", "1"),
    sysctl("vm/panic_on_oom", "0"),
    sysctl("kernel/panic", "10"),
    sysctl("kernel/panic_on_oops", "1"),
    sysctl("kernel/keys/root_maxkeys", "1000000"),
    sysctl("kernel/keys/root_maxbytes", "25000000"),
];

/// Settings of the network and of what a busy node needs. Those of `net/netfilter` exist once `nf_conntrack` is loaded.
pub const NODE_SYSCTLS: [Sysctl; 12] = [
    sysctl("net/ipv4/ip_forward", "1"),
    sysctl("net/ipv6/conf/all/forwarding", "1"),
    // Kubernetes' own values (kube-proxy's defaults), so that kube-proxy needs no access to the settings.
    sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "86400"),
    sysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"),
    // Pods are neighbours of the bridge: the kernel's limits of 128/512/1024 entries are fewer than two full nodes.
    sysctl("net/ipv4/neigh/default/gc_thresh1", "1024"),
    sysctl("net/ipv4/neigh/default/gc_thresh2", "4096"),
    sysctl("net/ipv4/neigh/default/gc_thresh3", "8192"),
    sysctl("fs/inotify/max_user_instances", "8192"),
    sysctl("fs/inotify/max_user_watches", "524288"),
    sysctl("fs/file-max", "2097152"),
    sysctl("kernel/pid_max", "4194304"),
    sysctl("vm/max_map_count", "262144"),
];

/// Settings that take rights away from everything on the machine.
pub const HARDENING_SYSCTLS: [Sysctl; 11] = [
    sysctl("kernel/dmesg_restrict", "1"),
    sysctl("kernel/kptr_restrict", "2"),
    sysctl("kernel/unprivileged_bpf_disabled", "1"),
    sysctl("kernel/kexec_load_disabled", "1"),
    sysctl("net/core/bpf_jit_harden", "2"),
    sysctl("fs/protected_hardlinks", "1"),
    sysctl("fs/protected_symlinks", "1"),
    sysctl("fs/protected_fifos", "2"),
    sysctl("fs/protected_regular", "2"),
    sysctl("net/ipv4/conf/all/accept_redirects", "0"),
    sysctl("net/ipv4/conf/all/send_redirects", "0"),
];

/// Kernel modules of the node, loaded before the services start. One that is built in or unknown is skipped.
pub const NODE_MODULES: [&str; 10] = [
    "overlay",
    "bridge",
    "veth",
    "nf_tables",
    "nf_conntrack",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_fib_inet",
    "nft_numgen",
];

/// Further modules of kube-proxy's mode.
pub fn proxy_modules(mode: ProxyMode) -> &'static [&'static str] {
    match mode {
        ProxyMode::Nftables => &[],
        ProxyMode::Iptables => &[
            "nft_compat",
            "xt_comment",
            "xt_mark",
            "xt_conntrack",
            "xt_addrtype",
            "xt_statistic",
            "xt_MASQUERADE",
            "xt_nat",
        ],
        ProxyMode::Ipvs => &[
            "ip_vs",
            "ip_vs_rr",
            "ip_vs_wrr",
            "ip_vs_sh",
            "ip_set",
            "nft_compat",
            "xt_comment",
            "xt_mark",
            "xt_conntrack",
            "xt_set",
            "xt_MASQUERADE",
        ],
    }
}
