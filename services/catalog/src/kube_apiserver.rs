//! kube-apiserver: the cluster's front. The only listener of the control plane beyond loopback.

use garboard_api::control_plane::{ApiServer, AuditRule, OidcIssuer, PodSecurity};
use garboard_supervisor::spec::{ServiceSpec, Slice, Stop};
use serde_json::json;

use crate::base::{
    Args, MIB, blank, cgroup, comma, https, liveness, private_directory, private_file, readiness, started,
};
use crate::kubeconfig::pretty;
use crate::paths::{self, service_file};
use crate::pki::{Leaf, apiserver as keys};
use crate::{CatalogError, CatalogInput, etcd, identity, tls, users};

/// The service's name.
pub const NAME: &str = "kube-apiserver";
/// Port of the API.
pub const PORT: u16 = 6443;
/// Common name of the front proxy's client certificate.
pub const FRONT_PROXY_USER: &str = "front-proxy-client";

/// The admission plugin that refuses Events of which there are too many.
const EVENT_RATE_LIMIT: &str = "EventRateLimit";

/// Its authorizers, which the node agent keeps: it follows a change of the file by itself.
pub const AUTHORIZATION: &str = "/run/garboard/authorization/config.json";
/// How it would reach the authorizer of removed machines, which is never there.
pub const ABSENT_AUTHORIZER: &str = "/run/garboard/authorization/absent.json";

/// Paths that answer without a certificate: health, for load balancers. They tell nothing but `ok`.
pub const ANONYMOUS_PATHS: [&str; 3] = ["/livez", "/readyz", "/healthz"];

/// The specification of kube-apiserver.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address to advertise.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let mut limits = cgroup(Slice::ControlPlane, -997, 1024, 128, low_mib(input.node.memory_bytes));
    limits.cpu_weight = Some(400);
    limits.io_weight = Some(200);

    let mut spec = blank(NAME, users::KUBE_APISERVER, limits, args(input)?.into_vec())?;
    spec.directories.push(private_directory(paths::AUDIT_DIR));
    spec.files = vec![
        private_file(authentication_file(), pretty(&authentication(&input.cluster.control_plane.api_server.oidc))),
        private_file(admission_file(), pretty(&admission(&input.cluster.control_plane.api_server))),
        private_file(audit_policy_file(), pretty(&audit_policy(&input.cluster.control_plane.api_server.audit_rules))),
    ];
    spec.isolation.read_write.push(paths::AUDIT_DIR.into());
    spec.supplementary_groups.push(users::ETCD.name.to_owned());
    // It retries its store for a while by itself, so it may start at the same time.
    spec.requires.push(started(etcd::NAME)?);
    spec.readiness = Some(readiness(https(PORT, "/readyz", Leaf::Apiserver.ca_file(), None)));
    spec.liveness = Some(liveness(https(PORT, "/livez", Leaf::Apiserver.ca_file(), None)));
    // Beside others it looks at each of its objects by way of the leader of etcd, and on a busy host that is slow.
    spec.start_timeout_ms = 600_000;
    // Open requests are let finish.
    spec.stop = Stop { grace_ms: 30_000, ..Stop::default() };
    Ok(spec)
}

/// Memory kept for it when memory is scarce: an eighth of the machine, at least what it needs when idle.
fn low_mib(memory_bytes: u64) -> u64 {
    (memory_bytes / 8 / MIB).clamp(256, 2048)
}

fn authentication_file() -> String {
    service_file(NAME, "authentication.json")
}

fn admission_file() -> String {
    service_file(NAME, "admission.json")
}

fn audit_policy_file() -> String {
    service_file(NAME, "audit-policy.json")
}

fn args(input: &CatalogInput) -> Result<Args, CatalogError> {
    let bind = if input.node_address()?.is_ipv6() { "::" } else { "0.0.0.0" };
    Ok(Args::new("/usr/bin/kube-apiserver")
        .flag("bind-address", bind)
        .flag("secure-port", PORT)
        .flag("advertise-address", input.node_address()?)
        .flag("tls-cert-file", Leaf::Apiserver.cert_file())
        .flag("tls-private-key-file", Leaf::Apiserver.key_file())
        .flag("tls-min-version", tls::MIN_VERSION)
        .flag("tls-cipher-suites", comma(&tls::CIPHER_SUITES))
        .flag("client-ca-file", Leaf::Apiserver.ca_file())
        .flag("authentication-config", authentication_file())
        .flag("authorization-config", AUTHORIZATION)
        // Machines that join show a one-time token until they have a certificate.
        .flag("enable-bootstrap-token-auth", true)
        .flag("enable-admission-plugins", plugins(&input.cluster.control_plane.api_server))
        .flag("admission-control-config-file", admission_file())
        .flag("allow-privileged", true)
        .flag("profiling", false)
        // At its end it would wait for whoever watches, which everybody does for as long as it is there.
        .flag("shutdown-watch-termination-grace-period", "2s")
        .flag("etcd-servers", etcd::local_url())
        .flag("encryption-provider-config", keys::ENCRYPTION_CONFIG)
        .flag("encryption-provider-config-automatic-reload", true)
        .flag("kubelet-certificate-authority", Leaf::ApiserverKubeletClient.ca_file())
        .flag("kubelet-client-certificate", Leaf::ApiserverKubeletClient.cert_file())
        .flag("kubelet-client-key", Leaf::ApiserverKubeletClient.key_file())
        .flag("kubelet-preferred-address-types", "InternalIP,Hostname")
        .flag("proxy-client-cert-file", Leaf::FrontProxyClient.cert_file())
        .flag("proxy-client-key-file", Leaf::FrontProxyClient.key_file())
        .flag("requestheader-client-ca-file", keys::FRONT_PROXY_CA)
        .flag("requestheader-allowed-names", FRONT_PROXY_USER)
        .flag("requestheader-extra-headers-prefix", "X-Remote-Extra-")
        .flag("requestheader-group-headers", "X-Remote-Group")
        .flag("requestheader-username-headers", "X-Remote-User")
        .flag("service-cluster-ip-range", input.cluster.service_cidr)
        .flag("service-account-issuer", format_args!("https://kubernetes.default.svc.{}", input.cluster.dns_domain))
        .flag("service-account-key-file", keys::SERVICE_ACCOUNT_PUBLIC_KEY)
        .flag("service-account-signing-key-file", keys::SERVICE_ACCOUNT_KEY)
        .flag("audit-policy-file", audit_policy_file())
        .flag("audit-log-path", format_args!("{}/{NAME}.log", paths::AUDIT_DIR))
        // At most five files of 64 MiB, whatever happens.
        .flag("audit-log-maxsize", 64)
        .flag("audit-log-maxbackup", 4)
        .flag("audit-log-maxage", 30)
        .declared(&input.cluster.control_plane, &input.cluster.control_plane.api_server.extra_args))
}

fn authentication(oidc: &[OidcIssuer]) -> serde_json::Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "anonymous": {
            "enabled": true,
            "conditions": ANONYMOUS_PATHS.map(|path| json!({ "path": path })),
        },
        "jwt": oidc.iter().map(jwt).collect::<Vec<_>>(),
    })
}

fn jwt(issuer: &OidcIssuer) -> serde_json::Value {
    let OidcIssuer { issuer_url, audiences, username_claim, username_prefix, groups_claim, groups_prefix, ca } = issuer;
    let mut jwt = json!({
        "issuer": { "url": issuer_url, "audiences": audiences },
        "claimMappings": { "username": { "claim": username_claim, "prefix": username_prefix } },
    });
    if audiences.len() > 1 {
        jwt["issuer"]["audienceMatchPolicy"] = json!("MatchAny");
    }
    if let Some(ca) = ca {
        jwt["issuer"]["certificateAuthority"] = json!(ca);
    }
    if let Some(claim) = groups_claim {
        let prefix = groups_prefix.as_ref().unwrap_or(username_prefix);
        jwt["claimMappings"]["groups"] = json!({ "claim": claim, "prefix": prefix });
    }
    jwt
}

/// The admission plugins that are on besides those that are by default.
fn plugins(api_server: &ApiServer) -> String {
    let mut plugins = vec![json!("NodeRestriction")];
    plugins.extend(api_server.admission_plugins.iter().map(|plugin| json!(plugin)));
    if !api_server.event_rate_limits.is_empty() {
        plugins.push(json!(EVENT_RATE_LIMIT));
    }
    comma(&plugins.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>())
}

/// The configuration of admission plugins: what pods may do unless their namespace says otherwise, and how many Events are taken.
fn admission(api_server: &ApiServer) -> serde_json::Value {
    let mut plugins = vec![pod_security(&api_server.pod_security)];
    if !api_server.event_rate_limits.is_empty() {
        plugins.push(json!({
            "name": EVENT_RATE_LIMIT,
            "configuration": {
                "apiVersion": "eventratelimit.admission.k8s.io/v1alpha1",
                "kind": "Configuration",
                "limits": api_server.event_rate_limits,
            },
        }));
    }
    json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins })
}

/// kube-system is exempt: what runs there runs the node.
fn pod_security(pod_security: &PodSecurity) -> serde_json::Value {
    let PodSecurity { enforce, audit, warn, exempt_namespaces } = pod_security;
    let exempt: Vec<&str> = ["kube-system"].into_iter().chain(exempt_namespaces.iter().map(String::as_str)).collect();
    json!({
        "name": "PodSecurity",
        "configuration": {
            "apiVersion": "pod-security.admission.config.k8s.io/v1",
            "kind": "PodSecurityConfiguration",
            "defaults": {
                "enforce": enforce,
                "enforce-version": "latest",
                "audit": audit,
                "audit-version": "latest",
                "warn": warn,
                "warn-version": "latest",
            },
            "exemptions": { "usernames": [], "runtimeClasses": [], "namespaces": exempt },
        },
    })
}

/// Who did what to which object, without the noise of the machine itself: reads of the control plane, leases, events and health.
/// Bodies are kept only where they tell who may do what, and where somebody wants to know more.
fn audit_policy(declared: &[AuditRule]) -> serde_json::Value {
    let quiet = json!([
        { "level": "None", "nonResourceURLs": ["/livez*", "/readyz*", "/healthz*", "/version", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*"], "verbs": ["get"] },
        { "level": "None", "resources": [
            { "group": "", "resources": ["events"] },
            { "group": "events.k8s.io", "resources": ["events"] },
            { "group": "coordination.k8s.io", "resources": ["leases"] },
        ] },
        { "level": "None", "users": ["system:apiserver"] },
        { "level": "None", "verbs": ["get", "list", "watch"], "users": [
            "system:kube-controller-manager", "system:kube-scheduler",
        ] },
        { "level": "None", "verbs": ["get", "list", "watch"], "userGroups": [
            "system:nodes", "system:serviceaccounts:kube-system", identity::KUBE_PROXIES_GROUP,
            identity::AGENT_GROUP, identity::WORKERS_GROUP, identity::DNS_GROUP, identity::OPERATORS_GROUP,
        ] },
        { "level": "None", "verbs": ["update", "patch"], "userGroups": ["system:nodes"], "resources": [
            { "group": "", "resources": ["nodes/status", "pods/status"] },
        ] },
        // Reviews hold tokens, Secrets are secret: never more than the fact.
        { "level": "Metadata", "resources": [
            { "group": "", "resources": ["secrets", "configmaps", "serviceaccounts/token"] },
            { "group": "authentication.k8s.io" },
            { "group": "authorization.k8s.io" },
        ] },
    ]);
    let rest = json!([
        { "level": "Request", "verbs": ["create", "update", "patch", "delete", "deletecollection"], "resources": [
            { "group": "rbac.authorization.k8s.io" },
            { "group": "admissionregistration.k8s.io" },
            { "group": "certificates.k8s.io" },
            { "group": "garboard.dev" },
        ] },
        { "level": "Metadata" },
    ]);
    let rules: Vec<_> =
        [quiet, json!(declared), rest].iter().filter_map(|part| part.as_array()).flatten().cloned().collect();
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": true,
        "rules": rules,
    })
}
