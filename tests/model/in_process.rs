//! A registry in this process: as fast as it goes.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use stillage::layout::{Account, RealDisk, Tree};
use stillage::oci::{Algorithm, ContentRange, Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, Error, MountFrom, Push, Registry, Settings, UploadId};
use stillage::upkeep::check::{self, Severity};
use stillage::upkeep::gc::{self, Event, Fate};
use tokio::runtime::Runtime;

use super::face::{Answer, Collected, Collection, Face, Found, Pulled, Referrer, Refused};

/// The registry, and what it runs on.
pub struct InProcess {
    root: tempfile::TempDir,
    registry: Registry,
    runtime: Runtime,
}

impl InProcess {
    /// On a tree in memory where there is one: real files and links, and an fsync that costs nothing.
    pub fn new() -> InProcess {
        let shm = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("stillage-model-");
        let made = if shm.is_dir() { builder.tempdir_in(shm) } else { builder.tempdir() };
        let root = made.expect("a temporary directory");
        // As a server makes ROOT: what is not for everybody has no views.
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).expect("its mode");
        let registry = open(root.path());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        InProcess { root, registry, runtime }
    }
}

fn open(root: &Path) -> Registry {
    Registry::open(root, Settings::default()).expect("the tree opens")
}

fn refused(error: &Error) -> Refused {
    match error {
        Error::NameUnknown(_) => Refused::NameUnknown,
        Error::BlobUnknown { .. } => Refused::BlobUnknown,
        Error::ManifestUnknown { .. } => Refused::ManifestUnknown,
        Error::UploadUnknown(_) => Refused::UploadUnknown,
        Error::UploadRange { .. } => Refused::UploadRange,
        Error::DigestMismatch { .. } => Refused::DigestMismatch,
        Error::ManifestBlobUnknown(absent) => {
            Refused::BlobsAbsent(absent.iter().cloned().collect())
        }
        Error::BlobInUse { .. } => Refused::BlobInUse,
        Error::Layout(stillage::layout::Error::Damaged { .. }) => Refused::Damaged,
        other => Refused::Other(other.to_string()),
    }
}

fn name(repo: &str) -> RepoName {
    RepoName::parse(repo).expect("a name")
}

fn reference(text: &str) -> Reference {
    match Digest::parse(text) {
        Ok(digest) => Reference::Digest(digest),
        Err(_) => Reference::Tag(Tag::parse(text).expect("a tag")),
    }
}

fn upload(id: &str) -> UploadId {
    UploadId::parse(id).expect("an upload's id")
}

/// In two pieces, so that more than one arrives.
fn body(bytes: Bytes) -> impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin {
    let half = bytes.len() / 2;
    stream::iter([Ok(bytes.slice(..half)), Ok(bytes.slice(half..))])
}

macro_rules! ask {
    ($self:ident, $registry:ident => $asked:expr) => {{
        let $registry = &$self.registry;
        $self.runtime.block_on(async { $asked.await }).map_err(|error| refused(&error))
    }};
}

impl Face for InProcess {
    fn root(&self) -> &Path {
        self.root.path()
    }

    fn writes_by_itself(&self) -> bool {
        false
    }

    fn put_blob(&mut self, repo: &str, digest: &Digest, bytes: Bytes) -> Answer<()> {
        ask!(self, r => r.put_blob(&name(repo), &Actor::default(), body(bytes), digest))
    }

    fn begin(&mut self, repo: &str, algorithm: Algorithm) -> Answer<String> {
        let begun =
            ask!(self, r => r.begin_upload(&name(repo), Some(algorithm), &Actor::default()))?;
        Ok(begun.id.to_string())
    }

    fn append(&mut self, repo: &str, id: &str, first: Option<u64>, bytes: Bytes) -> Answer<u64> {
        let len = bytes.len() as u64;
        // Content-Range cannot say "nothing".
        let range =
            first.filter(|_| len > 0).map(|first| ContentRange { first, last: first + len - 1 });
        let done = ask!(self, r =>
            r.append_upload(&name(repo), &upload(id), &Actor::default(), range, body(bytes)))?;
        Ok(done.size)
    }

    fn received(&mut self, repo: &str, id: &str) -> Answer<u64> {
        let status = ask!(self, r => r.upload_status(&name(repo), &upload(id), &Actor::default()))?;
        Ok(status.size)
    }

    fn finish(&mut self, repo: &str, id: &str, bytes: Bytes, digest: &Digest) -> Answer<()> {
        ask!(self, r => r.finish_upload(
            &name(repo), &upload(id), &Actor::default(), None, body(bytes), digest))
    }

    fn cancel(&mut self, repo: &str, id: &str) -> Answer<()> {
        ask!(self, r => r.cancel_upload(&name(repo), &upload(id), &Actor::default()))
    }

    fn mount(&mut self, repo: &str, digest: &Digest, from: Option<&str>) -> Answer<bool> {
        let from = match from {
            Some(source) => MountFrom::Repo(name(source), Account::default()),
            None => MountFrom::Anywhere(Arc::new(|_| Ok(Some(Account::default())))),
        };
        ask!(self, r => r.mount(&name(repo), digest, from, &Actor::default()))
    }

    fn head(&mut self, repo: &str, digest: &Digest) -> Answer<u64> {
        let actor = Actor::default();
        let info =
            ask!(self, r => r.stat_blob(&name(repo), digest, &Account::default(), Some(&actor)))?;
        Ok(info.size)
    }

    fn blob(&mut self, repo: &str, digest: &Digest) -> Answer<Bytes> {
        let mut open = ask!(self, r => r.open_blob(&name(repo), digest, &Account::default()))?;
        let mut bytes = Vec::new();
        open.file.read_to_end(&mut bytes).map_err(|error| Refused::Other(error.to_string()))?;
        Ok(bytes.into())
    }

    fn delete_blob(&mut self, repo: &str, digest: &Digest) -> Answer<()> {
        ask!(self, r => r.delete_blob(&name(repo), digest, &Actor::default()))
    }

    fn put_manifest(
        &mut self,
        repo: &str,
        to: &str,
        tags: &[String],
        media_type: &str,
        bytes: Bytes,
    ) -> Answer<(Digest, Option<Digest>)> {
        let tags = tags.iter().map(|tag| Tag::parse(tag).expect("a tag")).collect();
        let content_type = Some(media_type.to_owned());
        let push = Push { reference: reference(to), tags, content_type, bytes };
        let pushed = ask!(self, r => r.put_manifest(&name(repo), push, &Actor::default()))?;
        Ok((pushed.digest, pushed.subject))
    }

    fn manifest(&mut self, repo: &str, by: &str) -> Answer<Pulled> {
        let stored = ask!(self, r =>
            r.manifest(&name(repo), &reference(by), &Account::default()))?;
        let (digest, media_type, bytes) = (stored.digest, stored.media_type, stored.bytes);
        Ok(Pulled { digest, media_type, bytes })
    }

    fn delete_manifest(&mut self, repo: &str, by: &str) -> Answer<()> {
        ask!(self, r => r.delete_manifest(&name(repo), &reference(by), &Actor::default()))?;
        Ok(())
    }

    fn tags(&mut self, repo: &str, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)> {
        let page = ask!(self, r => r.tags(&name(repo), last, n, &Account::default()))?;
        Ok((page.items.iter().map(Tag::to_string).collect(), page.more))
    }

    fn referrers(
        &mut self,
        repo: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Answer<Vec<Referrer>> {
        let listed = ask!(self, r =>
            r.referrers(&name(repo), subject, artifact_type, None, &Account::default()))?;
        let referrer = |d: stillage::oci::Descriptor| Referrer {
            digest: d.digest,
            media_type: d.media_type,
            size: d.size,
            artifact_type: d.artifact_type,
            annotations: d.annotations,
        };
        Ok(listed.into_iter().map(referrer).collect())
    }

    fn catalog(&mut self, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)> {
        let all: stillage::registry::MayRead = Arc::new(|_| Ok(Some(Account::default())));
        let page = ask!(self, r => r.catalog(last, n, all, &Account::default()))?;
        Ok((page.items.iter().map(RepoName::to_string).collect(), page.more))
    }

    fn restart(&mut self) -> Option<u64> {
        self.registry = open(self.root.path());
        None
    }

    fn check(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        let mut report = |finding: check::Finding| {
            found.push(Found {
                rule: finding.rule.id().to_owned(),
                is_error: finding.rule.severity() == Severity::Error,
                repository: finding.repository,
                path: finding.path,
            });
        };
        check::check(self.root.path(), check::Options::default(), &mut report).expect("a check");
        found
    }

    fn collect(&mut self, collection: &Collection) -> Result<Collected, String> {
        let tree = Tree::open(self.root.path(), Arc::new(RealDisk)).map_err(|e| e.to_string())?;
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let options = gc::Options {
            grace: hours(collection.grace),
            undo_window: hours(collection.undo_window),
            only: collection.only.as_deref().map(name),
            dry_run: collection.dry_run,
            ..gc::Options::default()
        };
        let options = if collection.now { options.at_once() } else { options };
        let mut untag = |_: &_, _, _: &_| Ok(true);
        let mut did = Collected::default();
        let mut wrong = None;
        let mut take = |event: Event<'_>| match event {
            Event::Digest { repository, digest, fate } => {
                let place = (repository.to_string(), digest.clone());
                match fate {
                    Fate::Noted => did.noted.insert(place),
                    Fate::Goes { .. } => did.unlinked.insert(place),
                    _ => false,
                };
            }
            Event::Left { repository, .. } => {
                did.stopped.insert(repository.to_string());
            }
            Event::Blocked(why) => wrong = Some(why.to_string()),
            Event::PassedOver(error) | Event::Warning(error) => wrong = Some(error.to_string()),
            _ => {}
        };
        let summary = gc::run(&tree, &options, &mut untag, &mut take);
        let summary = summary.map_err(|error| error.to_string())?;
        did.freed = summary.bytes;
        wrong.map_or(Ok(did), Err)
    }
}
