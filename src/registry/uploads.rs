//! Uploads: whole in one request, or in a session.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use rustix::io::Errno;

use super::receive::{Received, Sink, receive};
use super::{Actor, Destination, Error, Inner, Registry, Result, locked};
use crate::layout::blobs::{self, Target};
use crate::layout::uploads::{Owner, Session, SessionData, UploadId};
use crate::layout::{self, At, Incoming, path};
use crate::oci::{Algorithm, ContentRange, Digest, Hasher, RepoName};

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// The session.
    pub id: UploadId,
    /// Bytes stored so far.
    pub size: u64,
}

/// Hash states of open sessions. They are only a memory: a session without one is hashed again
/// from its file.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    states: Mutex<HashMap<UploadId, State>>,
}

/// What a session's bytes hash to so far.
#[derive(Debug)]
struct State {
    hasher: Hasher,
    seen: u64,
    since: Instant,
}

/// Hash states that are remembered at most, about 300 bytes each.
const MOST_HASHES: usize = 8192;

impl Hashes {
    /// Takes the state of a session, if it has seen exactly `size` bytes.
    fn take(&self, id: &UploadId, algorithm: Algorithm, size: u64) -> Option<Hasher> {
        let state = locked(&self.states).remove(id)?;
        (state.seen == size && state.hasher.algorithm() == algorithm).then_some(state.hasher)
    }

    /// Remembers a state, instead of the oldest one if there are too many.
    fn put(&self, id: &UploadId, hasher: Hasher, seen: u64) {
        let mut states = locked(&self.states);
        if states.len() >= MOST_HASHES {
            let oldest = states.iter().min_by_key(|(_, state)| state.since);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                states.remove(&oldest);
            }
        }
        states.insert(id.clone(), State { hasher, seen, since: Instant::now() });
    }

    pub(super) fn forget(&self, id: &UploadId) {
        locked(&self.states).remove(id);
    }
}

impl Registry {
    /// Opens a session ("Pushing a blob monolithically", "… in chunks").
    ///
    /// # Errors
    /// [`Error::TooManyUploads`] if the user has as many as one may have.
    pub async fn begin_upload(
        &self,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
        actor: &Actor,
    ) -> Result<UploadStatus> {
        let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
        let owner = Owner::new(actor.who.clone(), repo, algorithm);
        let slot = self.slot(actor).await?;
        self.blocking(move |inner| {
            inner.space.check()?;
            Session::create(&inner.tree, slot.id(), owner)?;
            Ok(UploadStatus { id: slot.keep(), size: 0 })
        })
        .await
    }

    /// How far a session has come.
    pub async fn upload_status(
        &self,
        repo: &RepoName,
        id: &UploadId,
        actor: &Actor,
    ) -> Result<UploadStatus> {
        let session = self.session(repo, id, actor).await?;
        let id = id.clone();
        self.blocking(move |_| match session.size() {
            Ok(size) => Ok(UploadStatus { id, size }),
            Err(error) if error.is_absent() => Err(Error::UploadUnknown(id.to_string())),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Appends a chunk to a session, or a stream of unknown length.
    ///
    /// If the body breaks off, what arrived stays; if its length is not the announced one, the
    /// chunk is taken back.
    pub async fn append_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        actor: &Actor,
        range: Option<ContentRange>,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    ) -> Result<UploadStatus> {
        let session = self.session(repo, id, actor).await?;
        let algorithm = session.owner.algorithm();
        let (sink, _data) = self.fill(session, id, range, algorithm, body).await?;
        let size = sink.written;
        self.inner.hashes.put(id, sink.hasher, size);
        Ok(UploadStatus { id: id.clone(), size })
    }

    /// Appends what the body holds and makes a blob of the session.
    ///
    /// When this returns, the repository has the blob, and collection will leave it there. If the
    /// content has another digest, the session is gone, like its bytes.
    pub async fn finish_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        actor: &Actor,
        range: Option<ContentRange>,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        digest: &Digest,
    ) -> Result<()> {
        let session = self.session(repo, id, actor).await?;
        let (sink, data) = self.fill(session.clone(), id, range, digest.algorithm(), body).await?;
        self.promise(repo, digest, actor).await?;
        let (id, to) = (id.clone(), Destination::new(repo, digest, actor));
        self.blocking(move |inner| inner.finish_session(&to, &id, &session, data, sink)).await
    }

    /// Gives a session up ("Cancel a blob upload").
    pub async fn cancel_upload(&self, repo: &RepoName, id: &UploadId, actor: &Actor) -> Result<()> {
        let session = self.session(repo, id, actor).await?;
        let id = id.clone();
        self.blocking(move |inner| {
            let data = inner.lock_session(&session, &id)?;
            inner.hashes.forget(&id);
            session.remove(&inner.tree, &id, data)?;
            inner.slots.free(&id);
            Ok(())
        })
        .await
    }

    /// Takes a whole blob in one request, which counts as an open upload as long as it lasts.
    ///
    /// # Errors
    /// [`Error::TooManyUploads`] if the user has as many as one may have.
    pub async fn put_blob(
        &self,
        repo: &RepoName,
        actor: &Actor,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        digest: &Digest,
    ) -> Result<()> {
        let slot = self.slot(actor).await?;
        let algorithm = digest.algorithm();
        let (incoming, sink) = self
            .blocking(move |inner| {
                inner.space.check()?;
                let incoming = Incoming::create(&inner.tree)?;
                let sink = inner.sink(incoming.file(), Hasher::new(algorithm), 0);
                Ok((incoming, sink.at(|| inner.tree.room.at(path::UPLOADS))?))
            })
            .await?;
        let received = receive(sink, body).await;
        self.promise(repo, digest, actor).await?;
        let to = Destination::new(repo, digest, actor);
        self.blocking(move |inner| {
            let _slot = slot;
            let Received { sink, result } = received?;
            result.and_then(|()| inner.admit(&to, &incoming, sink))
        })
        .await
    }

    /// A session, if it is this user's and this repository's; otherwise it does not exist.
    async fn session(&self, repo: &RepoName, id: &UploadId, actor: &Actor) -> Result<Session> {
        let (repo, id, who) = (repo.clone(), id.clone(), actor.who.clone());
        self.blocking(move |inner| match Session::find(&inner.tree, &id)? {
            Some(session)
                if session.owner.user == who && session.owner.repository == repo.as_str() =>
            {
                Ok(session)
            }
            _ => Err(Error::UploadUnknown(id.to_string())),
        })
        .await
    }

    /// Appends a body to a session whose data stays locked until the result is dropped.
    async fn fill(
        &self,
        session: Session,
        id: &UploadId,
        range: Option<ContentRange>,
        algorithm: Algorithm,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    ) -> Result<(Sink, SessionData)> {
        let key = id.clone();
        let (data, sink) = self
            .blocking(move |inner| {
                let data = inner.lock_session(&session, &key)?;
                check_range(&key, range, data.size)?;
                let sink = inner.resume(&key, &data, algorithm)?;
                Ok((data, sink))
            })
            .await?;
        let Received { sink, result } = receive(sink, body).await?;
        if let Err(error) = result {
            self.inner.hashes.put(id, sink.hasher, sink.written);
            return Err(error);
        }
        let received = sink.written - data.size;
        match range {
            Some(range) if range.len() != received => {
                let cut = move |inner: &Inner| {
                    let cut = inner.tree.disk.set_len(&data.file, data.size);
                    Ok(cut.at(|| data.dir.at(path::UPLOAD_DATA))?)
                };
                self.blocking(cut).await?;
                Err(Error::UploadLength { announced: range.len(), received })
            }
            _ => Ok((sink, data)),
        }
    }
}

fn check_range(id: &UploadId, range: Option<ContentRange>, size: u64) -> Result<()> {
    match range {
        Some(sent) if sent.first != size => Err(Error::UploadRange { id: id.clone(), size, sent }),
        _ => Ok(()),
    }
}

impl Inner {
    fn lock_session(&self, session: &Session, id: &UploadId) -> Result<SessionData> {
        match session.lock() {
            Ok(Some(data)) => Ok(data),
            // Nobody but the sweep holds what has seen no byte for so long.
            Ok(None) if self.is_expired(session) => Err(Error::UploadUnknown(id.to_string())),
            Ok(None) => Err(Error::UploadBusy(id.clone())),
            Err(error) if error.is_absent() => Err(Error::UploadUnknown(id.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// A sink at the end of a session's data. Without a hash state at hand the file is read.
    fn resume(&self, id: &UploadId, data: &SessionData, algorithm: Algorithm) -> Result<Sink> {
        let at = || data.dir.at(path::UPLOAD_DATA);
        let hasher = match self.hashes.take(id, algorithm, data.size) {
            Some(hasher) => hasher,
            None => hash_file(&data.file, algorithm, data.size).at(at)?,
        };
        Ok(self.sink(&data.file, hasher, data.size).at(at)?)
    }

    fn sink(&self, file: &File, hasher: Hasher, written: u64) -> io::Result<Sink> {
        let at = self.tree.room.at(path::UPLOADS);
        Sink::new(file, at, &self.tree.disk, &self.space, hasher, written)
    }

    fn finish_session(
        &self,
        to: &Destination,
        id: &UploadId,
        session: &Session,
        data: SessionData,
        sink: Sink,
    ) -> Result<()> {
        let file = data.file.try_clone().at(|| data.dir.at(path::UPLOAD_DATA))?;
        let incoming = Incoming::of_session(file, data.dir.clone());
        let admitted = self.admit(to, &incoming, sink);
        let again = admitted.as_ref().is_err_and(may_be_retried) && !incoming.is_spoiled();
        if again && is_unshared(&data.file) {
            return admitted;
        }
        drop(incoming);
        match session.remove(&self.tree, id, data) {
            Ok(()) => self.slots.free(id),
            Err(error) => {
                tracing::warn!(%error, "a finished upload session stays until it is swept");
            }
        }
        admitted
    }

    /// Makes a blob of what was received, if it has the digest.
    fn admit(&self, to: &Destination, incoming: &Incoming, sink: Sink) -> Result<()> {
        let Destination { repo, digest, account } = to;
        let size = sink.written;
        let actual = sink.hasher.finish();
        if actual != *digest {
            return Err(Error::DigestMismatch { expected: digest.clone(), actual });
        }
        let dir = self.tree.make_repository(repo, account)?;
        self.space.check_copy(&dir, size)?;
        let target = Target { name: repo, dir: &dir };
        Ok(blobs::admit(&self.tree, &self.holders, target, incoming, digest, size)?)
    }
}

/// A full disk may have room again when the client sends its last request once more.
fn may_be_retried(error: &Error) -> bool {
    let Error::Layout(error) = error else {
        return false;
    };
    matches!(layout::Error::errno(error), Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE))
}

/// Whether a session's data has not become a blob yet.
fn is_unshared(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 1)
}

/// So much of a file is read at once.
const READ: usize = 256 * 1024;

fn hash_file(file: &File, algorithm: Algorithm, size: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0u8; READ];
    let mut offset = 0;
    while offset < size {
        let read = file.read_at(&mut buffer, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        offset += read as u64;
    }
    Ok(hasher)
}
