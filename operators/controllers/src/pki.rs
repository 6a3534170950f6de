//! The machine's keys and certificates: kept on the state partition, copied to where services read them.
//!
//! [`plan::pki`](garboard_plan::pki) decides, [`PkiStore`] reads and does. A certificate and its key are one file, replaced
//! atomically, so a power cut leaves the old pair or the new one; whatever was not done is planned again. What is made
//! together goes to the disk together, authorities before what they have signed. Services follow a changed copy by
//! themselves: each of them reads its files again when they change or at its next connection.
//!
//! Where the machine has a TPM, it makes the key of the node agent ([`Leaf::Agent`]) and keeps it: what lies in the file is of use to that
//! TPM alone. The other keys are files, because the programs that use them read files.

pub(crate) mod files;
mod issue;
mod key;
mod memo;
pub(crate) mod read;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use garboard_api::PublicKeyPin;
use garboard_api::machine::IdentityKey;
use garboard_catalog::pki::{Leaf, apiserver, controller_manager};
use garboard_catalog::users;
use garboard_plan::pki::{
    self as plan, Authority, Deployment, Desired, Key, Observed, ObservedLeaf, Plan, Profile, Step,
};
use garboard_runtime::applier::chain;
use garboard_tpm::{Tpm, TpmError, TpmKey};
use serde_json::json;
use tracing::warn;

pub use files::FileError;
pub use issue::{CertificateRequest, IssueError};

use files::Folder;
use issue::Signer;
use key::LeafKey;
use memo::Memo;

/// Why keys or certificates could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An authority's file is there and holds no authority. It is not replaced, because that would cut off the whole cluster.
    #[error("{} holds no usable authority", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IssueError,
    },
    /// A file that an earlier step makes is not there.
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    /// The authority that should sign is not there.
    #[error("there is no {}", .0.name())]
    NoAuthority(Authority),
    /// What was given as a certificate is not the one that was asked for.
    #[error("what was issued as {0} is not what was asked for")]
    Foreign(&'static str),
    /// A certificate or key could not be made.
    #[error("cannot make {what}")]
    Issue {
        /// The name of what was to be made.
        what: &'static str,
        /// Why not.
        #[source]
        source: IssueError,
    },
}

/// Keys and certificates in their two places.
#[derive(Clone, Debug)]
pub struct PkiStore {
    state: PathBuf,
    deployed: PathBuf,
    signers: Arc<Memo<Authority, Arc<Signer>>>,
    leaves: Arc<Memo<Leaf, ObservedLeaf>>,
    tpm: Option<Tpm>,
    lost: Arc<Memo<Leaf, bool>>,
}

impl PkiStore {
    /// A store that keeps everything in `state` (`/state/pki`) and deploys to `deployed` (`/run/garboard/pki`).
    pub fn new(state: impl Into<PathBuf>, deployed: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            deployed: deployed.into(),
            signers: Arc::default(),
            leaves: Arc::default(),
            tpm: None,
            lost: Arc::default(),
        }
    }

    /// The same store on a machine with this TPM, if it has one.
    #[must_use]
    pub fn with_tpm(self, tpm: Option<Tpm>) -> Self {
        Self { tpm, ..self }
    }

    /// Brings everything to what `desired` says, but for what the cluster is to be asked for, and returns the plan: what was done, what is
    /// to be asked for, and what cannot be done.
    ///
    /// Repeating it does nothing; interrupted at any point, the next call finishes.
    ///
    /// # Errors
    /// [`PkiError`] of the first step that failed; the steps before it are done.
    pub fn reconcile(&self, desired: &Desired, now: SystemTime) -> Result<Plan, PkiError> {
        let plan = plan::plan(desired, &self.observe()?, now);
        let mut made = Made::default();
        let outcome = plan.steps.iter().try_for_each(|step| self.make(step, &mut made));
        // Nothing is in use before it is certain to be there after a power cut.
        self.keep(&made.0)?;
        outcome?;
        for step in &plan.steps {
            if let Step::Deploy(deployment) = step {
                self.folder(*deployment)?.deploy()?;
            }
        }
        Ok(plan)
    }

    /// What exists.
    ///
    /// # Errors
    /// [`PkiError::Authority`] for an authority's file that cannot be used, [`PkiError::File`] for one that cannot be read.
    pub fn observe(&self) -> Result<Observed, PkiError> {
        let mut observed = Observed::default();
        let mut signers = BTreeMap::new();
        for authority in Authority::ALL {
            if let Some(signer) = self.find_signer(authority)? {
                observed
                    .authorities
                    .insert(authority, plan::ObservedAuthority { validity: signer.validity, signs: signer.signs() });
                signers.insert(authority, signer);
            }
        }
        for key in Key::ALL {
            if self.read(key.name())?.is_some() {
                observed.keys.insert(key);
            }
        }
        for leaf in Leaf::ALL {
            // A file that is no certificate with its key is as good as none: the plan has it issued again.
            let Some(pem) = self.read(&leaf_file(leaf))? else { continue };
            if self.is_lost(leaf, &pem) {
                continue;
            }
            let signer = signers.get(&plan::authority(leaf)).map(Arc::as_ref);
            let authority = signer.map_or("", |signer| &signer.certificate_pem);
            if let Ok(found) = self.leaves.get(leaf, &[&pem, authority], || read::leaf(&pem, signer)) {
                observed.leaves.insert(leaf, found);
            }
        }
        let deployments = [Deployment::ApiserverKeys, Deployment::ControllerManagerKeys];
        for deployment in deployments.into_iter().chain(Leaf::ALL.map(Deployment::Leaf)) {
            // What cannot be put together now will be after the steps that make its parts.
            if let Ok(folder) = self.folder(deployment)
                && folder.is_deployed()?
            {
                observed.deployed.insert(deployment);
            }
        }
        Ok(observed)
    }

    /// Makes what a step is to make, which is then to be kept.
    fn make(&self, step: &Step, made: &mut Made) -> Result<(), PkiError> {
        match step {
            Step::CreateAuthority { authority, validity } => {
                let pem = issue::authority(authority.name(), *validity)
                    .map_err(|source| PkiError::Issue { what: authority.name(), source })?;
                made.add(authority_file(*authority), pem);
            }
            Step::CreateKey(key) => {
                let pem = match key {
                    Key::ServiceAccount => issue::signing_key(),
                    Key::Secrets => issue::encryption_key(),
                }
                .map_err(|source| PkiError::Issue { what: key.name(), source })?;
                made.add(key.name().to_owned(), pem);
            }
            Step::Issue { leaf, profile, validity, reason: _ } => {
                let authority = plan::authority(*leaf);
                let signer = match made.find(&authority_file(authority)) {
                    Some(pem) => self.parse_signer(authority, pem)?,
                    None => self.signer(authority)?,
                };
                let pem = self
                    .new_key(*leaf)
                    .and_then(|key| issue::leaf(&signer, profile, *validity, &key))
                    .map_err(|source| PkiError::Issue { what: leaf.name(), source })?;
                made.add(leaf_file(*leaf), pem);
            }
            // What is asked for takes as long as the cluster does: whoever asks hands the answer to `install`. What is deployed must be
            // kept before.
            Step::Request { .. } | Step::Deploy(_) => {}
        }
        Ok(())
    }

    /// A request for a certificate with a new key, to be answered by [`PkiStore::install`].
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the system gives no randomness.
    pub fn request(&self, leaf: Leaf, profile: &Profile) -> Result<CertificateRequest, PkiError> {
        let request = self.new_key(leaf).and_then(|key| issue::request(profile, &key));
        request.map_err(|source| PkiError::Issue { what: leaf.name(), source })
    }

    /// A request for a certificate with a key that is kept: until it is forgotten, and whatever happens meanwhile, each is for that key.
    ///
    /// # Errors
    /// [`PkiError::File`] when it cannot be kept, [`PkiError::Issue`] when the TPM that has it does not use it now, and those of
    /// [`PkiStore::request`].
    pub fn kept_request(&self, leaf: Leaf, profile: &Profile) -> Result<CertificateRequest, PkiError> {
        let file = request_file(leaf);
        if let Some(key) = self.read(&file)? {
            match issue::request_with(profile, &key, self.tpm.as_ref()) {
                Ok(request) => return Ok(request),
                Err(source) if source.may_pass() => return Err(PkiError::Issue { what: leaf.name(), source }),
                // What is no key, or is one of no use here, is as good as none.
                Err(_) => {}
            }
        }
        let request = self.request(leaf, profile)?;
        self.keep(&[(file, request.key_pem.clone())])?;
        Ok(request)
    }

    /// Forgets the key of a request that was answered.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_request(&self, leaf: Leaf) -> Result<(), PkiError> {
        Ok(files::remove(&self.state.join(request_file(leaf)))?)
    }

    /// Takes the certificate that the cluster has issued for a request, and deploys it.
    ///
    /// # Errors
    /// [`PkiError::Foreign`] when it is another's: of another key, for another name, or by another authority.
    pub fn install(
        &self,
        leaf: Leaf,
        profile: &Profile,
        request: &CertificateRequest,
        certificate: &str,
    ) -> Result<(), PkiError> {
        let pem = format!("{}\n{}", certificate.trim_end(), request.key_pem);
        let authority = self.signer(plan::authority(leaf))?;
        let found = read::leaf(&pem, Some(&authority)).map_err(|_| PkiError::Foreign(leaf.name()))?;
        if found.profile != *profile || !found.signed_by_authority {
            return Err(PkiError::Foreign(leaf.name()));
        }
        self.keep(&[(leaf_file(leaf), pem)])?;
        Ok(self.folder(Deployment::Leaf(leaf))?.deploy()?)
    }

    /// Takes the authority of a cluster that this machine joins, PEM. It takes the place of another, unless its key is here.
    ///
    /// # Errors
    /// [`PkiError::Authority`] when the text is no authority's certificate, [`PkiError::Foreign`] on a machine that has the keys of
    /// its cluster.
    pub fn trust(&self, certificate: &str) -> Result<(), PkiError> {
        let file = authority_file(Authority::Kubernetes);
        if self.find_signer(Authority::Kubernetes)?.is_some_and(|known| known.signs()) {
            return Err(PkiError::Foreign("the cluster's authority"));
        }
        Signer::parse(certificate).map_err(|source| PkiError::Authority { path: self.state.join(&file), source })?;
        self.keep(&[(file, certificate.to_owned())])
    }

    /// The cluster's authorities and keys, by the names of their files: what another control-plane machine needs to be one.
    ///
    /// # Errors
    /// [`PkiError::Missing`] on a machine that does not have them itself.
    pub fn cluster_keys(&self) -> Result<BTreeMap<String, String>, PkiError> {
        cluster_key_files().map(|file| Ok((file.clone(), self.require(&file)?))).collect()
    }

    /// Whether the cluster's authorities and keys are here.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn has_cluster_keys(&self) -> Result<bool, PkiError> {
        let observed = self.observe()?;
        let authorities =
            Authority::ALL.iter().all(|each| observed.authorities.get(each).is_some_and(|found| found.signs));
        Ok(authorities && observed.keys.len() == Key::ALL.len())
    }

    /// Takes the cluster's authorities and keys from another control-plane machine.
    ///
    /// # Errors
    /// [`PkiError::Foreign`] when they are not all there, or not those of the authority that is known already. Nothing is taken then.
    pub fn take_cluster_keys(&self, given: &BTreeMap<String, String>) -> Result<(), PkiError> {
        const WHAT: &str = "the cluster's keys";
        for authority in Authority::ALL {
            let pem = given.get(&authority_file(authority)).ok_or(PkiError::Foreign(WHAT))?;
            let signer = Signer::parse(pem).map_err(|_| PkiError::Foreign(WHAT))?;
            let known = self.find_signer(authority)?;
            let same = known.is_none_or(|known| known.certificate_pem == signer.certificate_pem);
            if !same || !signer.signs() {
                return Err(PkiError::Foreign(WHAT));
            }
        }
        let taken = cluster_key_files().map(|file| {
            let content = given.get(&file).ok_or(PkiError::Foreign(WHAT))?;
            Ok((file, content.clone()))
        });
        self.keep(&taken.collect::<Result<Vec<_>, PkiError>>()?)
    }

    /// Whether a certificate is there that says this and is not to be renewed yet.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn has(&self, leaf: Leaf, profile: &Profile, now: SystemTime) -> Result<bool, PkiError> {
        let desired = Desired { creates: false, signs: false, leaves: BTreeMap::from([(leaf, profile.clone())]) };
        let steps = plan::plan(&desired, &self.observe()?, now).steps;
        Ok(!steps.iter().any(|step| matches!(step, Step::Request { .. })))
    }

    /// Deploys a certificate that is there and whose time has come and not passed; says whether there is one.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn deploy_valid(&self, leaf: Leaf, now: SystemTime) -> Result<bool, PkiError> {
        let observed = self.observe()?;
        let valid =
            observed.leaves.get(&leaf).is_some_and(|found| found.signed_by_authority && found.validity.contains(now));
        if valid {
            self.folder(Deployment::Leaf(leaf))?.deploy()?;
        }
        Ok(valid)
    }

    /// Where the key of the node agent is; none before there is one.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn identity_key(&self) -> Result<Option<IdentityKey>, PkiError> {
        let pem = self.read(&leaf_file(Leaf::Agent))?;
        Ok(pem.map(|pem| if TpmKey::is_in(&pem) { IdentityKey::Tpm } else { IdentityKey::File }))
    }

    /// Whether a certificate is there whose key this machine cannot use any more: its TPM was cleared, is another, or is gone.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn has_lost(&self, leaf: Leaf) -> Result<bool, PkiError> {
        Ok(self.read(&leaf_file(leaf))?.is_some_and(|pem| self.is_lost(leaf, &pem)))
    }

    /// The folder in which a certificate is deployed.
    pub fn deployed(&self, leaf: Leaf) -> PathBuf {
        self.deployed.join(leaf.name())
    }

    /// The certificate of an authority, PEM.
    ///
    /// # Errors
    /// [`PkiError::NoAuthority`] before it is made.
    pub fn authority_certificate(&self, authority: Authority) -> Result<String, PkiError> {
        Ok(self.signer(authority)?.certificate_pem.clone())
    }

    /// What an authority is known by; none before it is made.
    ///
    /// # Errors
    /// When its file cannot be read or used.
    pub fn authority_pin(&self, authority: Authority) -> Result<Option<PublicKeyPin>, PkiError> {
        Ok(self.find_signer(authority)?.and_then(|signer| read::pin_of_pem(&signer.certificate_pem)))
    }

    /// A client certificate for a key that somebody else holds, PEM: the API server will know its bearer as user
    /// `common_name` in group `organization`, for `lifetime` from `now`.
    ///
    /// `public_key` is a DER SubjectPublicKeyInfo. The caller has made sure that its bearer may be this user.
    ///
    /// # Errors
    /// [`PkiError::NoAuthority`] before the cluster's authority is made, [`PkiError::Issue`] for a key of an unknown kind.
    pub fn sign_client(
        &self,
        public_key: &[u8],
        common_name: &str,
        organization: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let signer = self.signer(Authority::Kubernetes)?;
        let validity = plan::client_validity(signer.validity, lifetime, now);
        issue::client(&signer, public_key, common_name, organization, validity)
            .map_err(|source| PkiError::Issue { what: "a client certificate", source })
    }

    /// A new key for a certificate. A TPM that makes none is told of, and done without: the machine has to join all the same.
    fn new_key(&self, leaf: Leaf) -> Result<LeafKey, IssueError> {
        let tpm = self.tpm.as_ref().filter(|_| leaf == Leaf::Agent);
        match LeafKey::generate(tpm) {
            Err(IssueError::Tpm(error)) => {
                warn!(certificate = leaf.name(), error = chain(&error), "the TPM makes no key: it will be a file");
                LeafKey::generate(None)
            }
            made => made,
        }
    }

    /// Whether the key with a certificate is one that this machine can never use. A TPM that fails now may do better another time.
    fn is_lost(&self, leaf: Leaf, pem: &str) -> bool {
        if !TpmKey::is_in(pem) {
            return false;
        }
        let lost = self.lost.get(leaf, &[pem], || {
            let (_, key) = read::split(pem);
            // Whoever reads the certificate finds what is wrong with its key.
            let Ok(key) = TpmKey::from_pem(&key) else { return Ok(false) };
            let Some(tpm) = &self.tpm else { return Ok(true) };
            match tpm.check(&key) {
                Ok(()) => Ok(false),
                Err(error) => {
                    warn!(certificate = leaf.name(), error = chain(&error), "the TPM does not take the key");
                    if matches!(error, TpmError::ForeignKey) { Ok(true) } else { Err(error) }
                }
            }
        });
        lost.unwrap_or(false)
    }

    fn find_signer(&self, authority: Authority) -> Result<Option<Arc<Signer>>, PkiError> {
        let file = authority_file(authority);
        let Some(pem) = self.read(&file)? else { return Ok(None) };
        self.parse_signer(authority, &pem).map(Some)
    }

    fn parse_signer(&self, authority: Authority, pem: &str) -> Result<Arc<Signer>, PkiError> {
        let signer = self.signers.get(authority, &[pem], || Signer::parse(pem).map(Arc::new));
        signer.map_err(|source| PkiError::Authority { path: self.state.join(authority_file(authority)), source })
    }

    fn signer(&self, authority: Authority) -> Result<Arc<Signer>, PkiError> {
        self.find_signer(authority)?.ok_or(PkiError::NoAuthority(authority))
    }

    /// The files of a deployment, put together from the state.
    fn folder(&self, deployment: Deployment) -> Result<Folder, PkiError> {
        match deployment {
            Deployment::Leaf(leaf) => {
                let pem = self.require(&leaf_file(leaf))?;
                let (mut certificate, key) = read::split(&pem);
                let authority = self.signer(plan::authority(leaf))?;
                // Machines that join know their cluster by the authority in the chain that its API servers show.
                if leaf == Leaf::Apiserver {
                    certificate += &authority.certificate_pem;
                }
                let files =
                    vec![("tls.crt", certificate), ("tls.key", key), ("ca.crt", authority.certificate_pem.clone())];
                Ok(Folder { path: self.deployed(leaf), owner: leaf.owner(), files })
            }
            Deployment::ApiserverKeys => {
                let key = self.require(Key::ServiceAccount.name())?;
                let public =
                    read::public_key(&key).map_err(|source| PkiError::Issue { what: "a public key", source })?;
                let files = vec![
                    (file_name(apiserver::SERVICE_ACCOUNT_KEY), key),
                    (file_name(apiserver::SERVICE_ACCOUNT_PUBLIC_KEY), public),
                    (file_name(apiserver::ENCRYPTION_CONFIG), encryption_config(&self.require(Key::Secrets.name())?)),
                    (file_name(apiserver::FRONT_PROXY_CA), self.signer(Authority::FrontProxy)?.certificate_pem.clone()),
                ];
                Ok(Folder { path: self.deployed.join(file_name(apiserver::DIR)), owner: users::KUBE_APISERVER, files })
            }
            Deployment::ControllerManagerKeys => {
                let authority = self.require(&authority_file(Authority::Kubernetes))?;
                let files = vec![
                    (file_name(controller_manager::SERVICE_ACCOUNT_KEY), self.require(Key::ServiceAccount.name())?),
                    (file_name(controller_manager::CA_KEY), read::split(&authority).1),
                ];
                let path = self.deployed.join(file_name(controller_manager::DIR));
                Ok(Folder { path, owner: users::KUBE_CONTROLLER_MANAGER, files })
            }
        }
    }

    fn require(&self, file: &str) -> Result<String, PkiError> {
        self.read(file)?.ok_or_else(|| PkiError::Missing(self.state.join(file)))
    }

    fn read(&self, file: &str) -> Result<Option<String>, PkiError> {
        Ok(files::read(&self.state.join(file))?)
    }

    /// Keeps files, by their names, in their order.
    fn keep(&self, files: &[(String, String)]) -> Result<(), PkiError> {
        if files.is_empty() {
            return Ok(());
        }
        files::make_folder(&self.state, users::ROOT, 0o700)?;
        let files: Vec<_> = files.iter().map(|(file, content)| (self.state.join(file), content.as_str())).collect();
        Ok(files::replace_all(&files, users::ROOT, 0o600)?)
    }
}

/// Files that were made and are not kept yet, by their names.
#[derive(Default)]
struct Made(Vec<(String, String)>);

impl Made {
    fn add(&mut self, file: String, content: String) {
        self.0.push((file, content));
    }

    fn find(&self, file: &str) -> Option<&str> {
        self.0.iter().find(|(made, _)| made == file).map(|(_, content)| content.as_str())
    }
}

fn authority_file(authority: Authority) -> String {
    format!("{}.pem", authority.name())
}

/// The files of the cluster's authorities and keys.
fn cluster_key_files() -> impl Iterator<Item = String> {
    Authority::ALL.map(authority_file).into_iter().chain(Key::ALL.map(|key| key.name().to_owned()))
}

fn leaf_file(leaf: Leaf) -> String {
    format!("{}.pem", leaf.name())
}

fn request_file(leaf: Leaf) -> String {
    format!("{}.request.key", leaf.name())
}

/// The last part of a path of the catalog, which all lie in folders of the deployment directory.
fn file_name(path: &'static str) -> &'static str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// How kube-apiserver encrypts Secrets. There is no provider that writes or reads plain text.
fn encryption_config(key_base64: &str) -> String {
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [{ "secretbox": { "keys": [{ "name": "key1", "secret": key_base64.trim() }] } }],
        }],
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests;
