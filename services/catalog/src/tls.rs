//! One TLS policy for every listener: version 1.2 or later with forward secrecy and authenticated encryption.

/// Cipher suites of TLS 1.2 by their IANA names, as Go's programs take them; every certificate here is ECDSA. TLS 1.3 chooses from its own.
pub const CIPHER_SUITES: [&str; 3] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// The lowest version, as Kubernetes names it.
pub const MIN_VERSION: &str = "VersionTLS12";

/// The lowest version, as etcd names it.
pub const ETCD_MIN_VERSION: &str = "TLS1.2";
