//! The deeds: pull, push, mount, tag, list, delete.
//!
//! Each public method of [`Registry`] is one deed on one repository. None knows a status code or a
//! user's rights; each file operation runs on the blocking pool.

mod blobs;
mod commit;
mod delete;
mod error;
mod group;
mod indexes;
mod lists;
mod manifests;
mod mount;
mod outside;
mod promise;
mod receive;
mod slots;
mod sweep;
#[cfg(test)]
mod tests;
mod uploads;
mod views;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

pub use blobs::{BlobInfo, OpenBlob};
pub use error::{Error, Result};
pub use lists::Page;
pub use manifests::{Push, Pushed, StoredManifest};
pub use mount::MountFrom;
pub use outside::Outside;
pub use uploads::UploadStatus;
pub use views::Views;

pub use crate::layout::space::MinFree;
pub use crate::layout::uploads::UploadId;
pub use crate::layout::{Key, Keys};

use crate::graph::Knowledge;
use crate::layout::holders::Holders;
use crate::layout::rights::{Rights, Way};
use crate::layout::space::Space;
use crate::layout::{self, Account, Disk, KeyFile, OwnCertificate, RealDisk, Tree};
use crate::oci::{Digest, RepoName};

/// How much work blocks at once: half of the threads that tokio makes for it.
const THREADS: usize = 256;

/// What an administrator may choose.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Nothing is ever written to the tree: whatever would change it is refused.
    pub read_only: bool,
    /// Take manifests whose blobs are absent.
    pub allow_sparse: bool,
    /// How long a request waits for a repository's lock.
    pub lock_wait: Duration,
    /// How many uploads one user may have open. A CI account with a hundred jobs at once, each
    /// pushing six layers at a time, needs 600; a thousand that are empty take 12 MB.
    pub max_uploads: usize,
    /// How long an upload is kept that gets no byte: as long as a blob that no manifest refers to.
    /// Clients take an upload up again after a broken line, within the same push; only scripts do
    /// after a night.
    pub upload_expiry: Duration,
    /// What uploads leave free.
    pub min_free: MinFree,
    /// Whether repositories have views for plain web servers.
    pub views: Views,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            read_only: false,
            allow_sparse: false,
            lock_wait: layout::lock::REQUEST_WAIT,
            max_uploads: 1000,
            upload_expiry: Duration::from_secs(24 * 60 * 60),
            min_free: MinFree::Bytes(0),
            views: Views::default(),
        }
    }
}

/// On whose behalf a deed is done, for the journal and as the owner of uploads.
#[derive(Clone, Debug, Default)]
pub struct Actor {
    /// The user; `None` where nobody logged in.
    pub who: Option<String>,
    /// Their address.
    pub from: Option<IpAddr>,
    /// What they may read of what others put here, and whose rights a directory made for them has.
    pub account: Account,
}

/// What becomes a blob, where, and for whom.
#[derive(Debug)]
struct Destination {
    repo: RepoName,
    digest: Digest,
    account: Account,
}

impl Destination {
    fn new(repo: &RepoName, digest: &Digest, actor: &Actor) -> Destination {
        let (repo, digest, account) = (repo.clone(), digest.clone(), actor.account.clone());
        Destination { repo, digest, account }
    }
}

/// What the keys that sign tokens are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNeed {
    /// To sign a token.
    Sign,
    /// To check one.
    Verify,
    /// To check one that none of the keys signed, as far as was known.
    Unknown,
}

/// Decides whether the caller may pull from a repository: then it gives the account that was let
/// through there. An error says that nobody could find out.
pub type MayRead = Arc<dyn Fn(&RepoName) -> Result<Option<Account>> + Send + Sync>;

/// A registry over one tree. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tree: Tree,
    settings: Settings,
    rights: Rights,
    holders: Holders,
    keys: KeyFile,
    indexes: indexes::Indexes,
    queues: Mutex<HashMap<RepoName, Arc<commit::Queue>>>,
    hashes: uploads::Hashes,
    turns: blobs::Turns,
    slots: Arc<slots::Slots>,
    /// Turns for work that blocks. Commits and bodies have threads besides.
    threads: Arc<Semaphore>,
    space: Arc<Space>,
    knowledge: Mutex<HashMap<RepoName, Arc<Mutex<Knowledge>>>>,
    opened: views::Opened,
}

impl Registry {
    /// Opens a tree; ROOT and its room are made when they are missing, unless it is read only.
    pub fn open(root: &Path, settings: Settings) -> Result<Registry> {
        if settings.read_only {
            return Ok(Self::of(Tree::open_read_only(root)?, settings));
        }
        Self::open_on(root, settings, Arc::new(RealDisk))
    }

    /// The same with another way to the file system, which a test may record.
    pub fn open_on(root: &Path, settings: Settings, disk: Arc<dyn Disk>) -> Result<Registry> {
        Ok(Self::of(Tree::open(root, disk)?, settings))
    }

    fn of(tree: Tree, settings: Settings) -> Registry {
        let inner = Inner {
            slots: Arc::new(slots::Slots::new(settings.max_uploads)),
            threads: Arc::new(Semaphore::new(THREADS)),
            space: Arc::new(Space::new(&tree, settings.min_free)),
            tree,
            settings,
            rights: Rights::default(),
            holders: Holders::default(),
            keys: KeyFile::default(),
            indexes: indexes::Indexes::default(),
            queues: Mutex::default(),
            hashes: uploads::Hashes::default(),
            turns: blobs::Turns::default(),
            knowledge: Mutex::default(),
            opened: views::Opened::default(),
        };
        Registry { inner: Arc::new(inner) }
    }

    /// Whether nothing can be changed here.
    pub fn is_read_only(&self) -> bool {
        self.inner.tree.is_read_only()
    }

    /// The keys that sign tokens (`.stillage/token-key`), made at the first call. A look at the
    /// file's status, mostly; a key that is too old to sign with is replaced on the way.
    pub fn token_keys(&self, need: KeyNeed) -> Result<Arc<Keys>> {
        let Inner { tree, keys, .. } = &*self.inner;
        let look = || match need {
            KeyNeed::Sign => keys.to_sign(tree),
            KeyNeed::Verify => keys.now(tree),
            KeyNeed::Unknown => keys.again(tree),
        };
        Ok(if tree.is_remote() { tokio::task::block_in_place(look) } else { look() }?)
    }

    /// The certificate that the server made for itself, if it did (`.stillage/tls/`).
    pub fn own_certificate(&self) -> Result<Option<OwnCertificate>> {
        Ok(OwnCertificate::read(&self.inner.tree)?)
    }

    /// Keeps a certificate that the server made for itself.
    pub fn keep_certificate(&self, made: &OwnCertificate) -> Result<()> {
        Ok(made.keep(&self.inner.tree)?)
    }

    /// Where the certificate lies once it was kept.
    pub fn own_certificate_path(&self) -> PathBuf {
        OwnCertificate::path(&self.inner.tree)
    }

    /// What lies on the way to a repository's directory now, for whoever decides on rights. On a
    /// local file system that takes microseconds, so it does not go to the blocking pool; on a
    /// network file system the thread's other tasks are moved away first.
    pub fn way(&self, repo: &RepoName, write: bool) -> Result<Way> {
        let look = || self.inner.rights.way(&self.inner.tree, repo, write);
        let way =
            if self.inner.tree.is_remote() { tokio::task::block_in_place(look) } else { look() }?;
        if self.inner.settings.views == Views::Make && !self.is_read_only() {
            self.inner.opened.asked_for(repo, &way);
        }
        Ok(way)
    }

    /// Whether pushes can be taken now: the tree is there and may be written, and there is space. Where
    /// nobody pushes, whether the tree is there.
    pub async fn ready(&self) -> Result<()> {
        self.blocking(|inner| {
            if inner.tree.is_read_only() {
                return Ok(inner.tree.refuse_unreadable()?);
            }
            inner.tree.refuse_read_only()?;
            Ok(inner.space.check()?)
        })
        .await
    }

    /// Runs file work where it may block. A few hundred do so at once; others wait for their turn,
    /// in their order, and not for ever.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let turn = Arc::clone(&inner.threads).acquire_owned();
        let turn = tokio::time::timeout(inner.settings.lock_wait, turn).await;
        let turn = turn.map_err(|_| Error::Overloaded)?;
        let work = move || {
            // Whoever asked may go away; the thread is taken until the work is done.
            let _turn = turn;
            work(&inner)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a deed ended without an answer");
                Err(Error::Internal)
            }
        }
    }
}

/// A panic while a lock was held leaves maps that are only caches, or are checked again.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// A repository's directory, for whom it is opened.
    fn repository_for(&self, name: &RepoName, account: &Account) -> Result<layout::Dir> {
        let found = self.tree.repository_for(name, account)?;
        found.ok_or_else(|| Error::NameUnknown(name.clone()))
    }
}
