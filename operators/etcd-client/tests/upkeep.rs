//! The client against the real program: `GARBOARD_UPSTREAM` names the folder that it lies in.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use garboard_etcd_client::Client;
use prost::Message;
use tonic::transport::{Channel, Endpoint};

/// Longest time for etcd to serve: many times what it takes.
const LIMIT: Duration = Duration::from_secs(60);
const MEBIBYTE: i64 = 1 << 20;
const QUOTA: i64 = 24 * MEBIBYTE;

struct Etcd {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Etcd {
    /// A lone member with a small database.
    async fn start(program: &Path) -> (Self, Client) {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("unix://{}", folder.path().join(name).display());
        let child = Command::new(program)
            .args(["--name=lone", "--initial-cluster=lone=http://127.0.0.1:2380", "--log-level=error"])
            .args([
                format!("--quota-backend-bytes={QUOTA}"),
                format!("--data-dir={}", folder.path().join("data").display()),
            ])
            .args([
                format!("--listen-client-urls={}", socket("client")),
                format!("--listen-peer-urls={}", socket("peer")),
            ])
            .args([
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            ])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (etcd, begun) = (Self { child, folder }, Instant::now());
        loop {
            if let Ok(mut client) = Client::connect(&etcd.url()).await
                && client.members().await.is_ok()
            {
                return (etcd, client);
            }
            assert!(begun.elapsed() < LIMIT, "etcd does not serve");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("client").display())
    }
}

/// etcd's `PutRequest`, as far as it is needed here.
#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Done {}

/// Writes a mebibyte under the same key as ever.
async fn write(channel: &Channel) -> Result<(), tonic::Status> {
    let mut calls = tonic::client::Grpc::new(channel.clone());
    calls.ready().await.map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let put = Put { key: b"key".to_vec(), value: vec![7; MEBIBYTE as usize] };
    let codec = tonic_prost::ProstCodec::<Put, Done>::default();
    let path = "/etcdserverpb.KV/Put".parse().unwrap();
    calls.unary(tonic::Request::new(put), path, codec).await.map(drop)
}

#[tokio::test]
async fn a_full_store_takes_changes_again_after_its_upkeep() {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/garboard/upstream/bin"));
    let folder = std::env::var_os("GARBOARD_UPSTREAM").map(PathBuf::from).or(home);
    let Some(program) = folder.map(|folder| folder.join("etcd")).filter(|program| program.exists()) else {
        eprintln!("skipped: no programs; `tests/run image unit` makes them and tells where they are");
        return;
    };
    let (etcd, mut client) = Etcd::start(&program).await;
    let channel = Endpoint::from_shared(etcd.url()).unwrap().connect().await.unwrap();
    let health = client.health().await.unwrap();
    assert!(health.leads() && health.alarms.is_empty(), "{health:?}");
    assert_eq!(health.quota_bytes, QUOTA);

    let mut written = 0;
    let refusal = loop {
        match write(&channel).await {
            Ok(()) => written += 1,
            Err(refusal) => break refusal,
        }
        assert!(written < 100, "a store of {QUOTA} bytes has taken {written} MiB");
    };
    assert!(refusal.message().contains("space"), "{refusal}");
    let full = client.health().await.unwrap();
    assert_eq!(full.alarms, ["NOSPACE"]);

    // Nothing is free before the old revisions are forgotten, and the file stays as large until it is defragmented.
    client.compact(full.revision).await.unwrap();
    assert!(client.compact(full.revision).await.is_err(), "it is done already");
    let compacted = client.health().await.unwrap();
    assert!(compacted.used_bytes < compacted.database_bytes / 2, "{compacted:?}");
    client.defragment().await.unwrap();
    let small = client.health().await.unwrap();
    assert!(small.database_bytes < QUOTA / 2, "{small:?}");
    assert!(write(&channel).await.is_err(), "the alarm stays until it is taken back");
    client.disarm(small.id).await.unwrap();
    write(&channel).await.unwrap();
    assert!(client.health().await.unwrap().alarms.is_empty());

    let mut snapshot = client.snapshot().await.unwrap();
    let (mut bytes, mut left) = (0, u64::MAX);
    while let Some((piece, remaining)) = snapshot.next().await.unwrap() {
        assert!(remaining <= left, "what comes after a piece shrinks");
        (bytes, left) = (bytes + piece.len(), remaining);
    }
    assert_eq!((left, bytes % 512), (0, 32), "a database, and a hash after it");
    assert_eq!(client.known_members().await.unwrap(), client.members().await.unwrap());
}
