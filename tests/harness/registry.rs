//! A registry of images on the host that asks for a user: `docker-registry`, as it is.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::lan::Lan;
use crate::wait;

/// The one whom it lets in.
pub const USER: &str = "garboard";
/// The password of that user.
pub const PASSWORD: &str = "open sesame";
/// The same, as it is told (htpasswd, bcrypt).
const HTPASSWD: &str = "garboard:$2y$05$garboardgarboardgarbu.fv33ecKB/ypj9oW2y0EtClq9D4W3.uu";
/// The type of what names the parts of an image.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Time in which it starts.
const LIMIT: Duration = Duration::from_secs(20);

/// A registry behind TLS that ends when this is dropped.
pub struct Registry {
    server: Child,
    port: u16,
    directory: PathBuf,
}

impl Registry {
    /// Starts one on the host's loopback, where machines reach it by their router. Its files are in a folder, which is made.
    ///
    /// # Errors
    /// When `docker-registry` is not installed, or does not start; with what it said.
    pub fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr())?.port();
        make_certificates(directory).context("make the registry's certificate")?;
        fs::write(directory.join("htpasswd"), HTPASSWD).context("write the registry's users")?;
        let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let config = json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": file("images") } },
            "auth": { "htpasswd": { "realm": "images", "path": file("htpasswd") } },
            "http": {
                "addr": format!("{}:{port}", Ipv4Addr::LOCALHOST),
                "tls": { "certificate": file("server.crt"), "key": file("server.key") },
            },
        });
        fs::write(directory.join("config.yml"), config.to_string()).context("write the registry's configuration")?;
        let log = fs::File::create(directory.join("registry.log")).context("make registry.log")?;
        let server = Command::new("docker-registry")
            .args(["serve", &file("config.yml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share registry.log")?)
            .stderr(log)
            .spawn()
            .context("start docker-registry: tests/run fetches it")?;
        let mut registry = Self { server, port, directory: directory.to_owned() };
        wait::until("the registry to listen", LIMIT, || {
            if let Ok(Some(status)) = registry.server.try_wait() {
                return Ok(Err(status));
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(|_| Ok(())).map_err(|error| error.to_string())
        })?
        .or_else(|status| bail!("the registry ended with {status}: {}", registry.log()))?;
        Ok(registry)
    }

    /// Where machines reach it.
    pub fn url(&self) -> String {
        format!("https://{}:{}", Lan::ROUTER, self.port)
    }

    /// The certificate of the authority that vouches for it, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn authority(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("ca.crt")).context("read the registry's authority")
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("registry.log")).unwrap_or_default()
    }

    /// Puts the image of an archive (OCI image layout) into a repository.
    ///
    /// # Errors
    /// When the archive is another, or the registry does not take it.
    pub fn push(&self, archive: &Path, repository: &str, tag: &str) -> Result<()> {
        let layout = self.directory.join(format!("{repository}-{tag}"));
        fs::create_dir_all(&layout).context("make a folder for the image")?;
        let unpacked = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(&layout).status().context("run tar")?;
        ensure!(unpacked.success(), "unpack {}: {unpacked}", archive.display());
        let blob = |digest: &str| layout.join("blobs").join(digest.replacen(':', "/", 1));
        let index = read_json(&layout.join("index.json"))?;
        let digest_of = |value: &Value| value["digest"].as_str().map(str::to_owned).context("an image has a digest");
        let manifest = blob(&digest_of(&index["manifests"][0])?);
        let content = read_json(&manifest)?;
        for part in content["layers"].as_array().into_iter().flatten().chain([&content["config"]]) {
            let digest = digest_of(part)?;
            let begun = self.curl(&["-D", "-", "-X", "POST", &self.at(&format!("{repository}/blobs/uploads/"))])?;
            let place = begun.lines().find_map(|line| line.strip_prefix("Location: ")).map(str::trim);
            let place = format!("{}&digest={digest}", place.context("the registry names no place for a part")?);
            let data = format!("@{}", blob(&digest).display());
            let octets = "Content-Type: application/octet-stream";
            self.curl(&["-X", "PUT", "-H", octets, "--data-binary", &data, &place])?;
        }
        let (data, kind) = (format!("@{}", manifest.display()), format!("Content-Type: {MANIFEST}"));
        let place = self.at(&format!("{repository}/manifests/{tag}"));
        self.curl(&["-X", "PUT", "-H", &kind, "--data-binary", &data, &place]).map(drop)
    }

    /// On this host.
    fn at(&self, path: &str) -> String {
        format!("https://{}:{}/v2/{path}", Ipv4Addr::LOCALHOST, self.port)
    }

    fn curl(&self, arguments: &[&str]) -> Result<String> {
        let authority = self.directory.join("ca.crt");
        let output = Command::new("curl")
            .args([
                "--fail",
                "--silent",
                "--show-error",
                "--http1.1",
                "--user",
                &format!("{USER}:{PASSWORD}"),
                "--cacert",
            ])
            .arg(authority)
            .args(arguments)
            .output()
            .context("run curl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "curl {}: {said}{}", arguments.join(" "), self.log());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended by itself is as good.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An authority, and a certificate of it for the addresses that the registry is reached at.
fn make_certificates(directory: &Path) -> Result<()> {
    let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "authority");
    let vouched = authority.self_signed(&authority_key)?;
    let mut server = CertificateParams::new([Lan::ROUTER, Ipv4Addr::LOCALHOST].map(|address| address.to_string()))?;
    server.distinguished_name.push(DnType::CommonName, "registry");
    let server = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
    let files = [("ca.crt", vouched.pem()), ("server.crt", server.pem()), ("server.key", key.serialize_pem())];
    for (name, content) in files {
        fs::write(directory.join(name), content)?;
    }
    Ok(())
}

fn read_json(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
}
