//! Uploads: bytes from a socket to a file, hashed on the way, never a whole blob in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt};
use rustix::io::Errno;

use super::{Actor, Destination, Error, Inner, Registry, Result, locked};
use crate::layout::blobs::{self, Target};
use crate::layout::uploads::{Owner, Session, SessionData, UploadId, reserve};
use crate::layout::{self, At, Disk, Incoming, path};
use crate::oci::{Algorithm, ContentRange, Digest, Hasher, RepoName};

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// The session.
    pub id: UploadId,
    /// Bytes stored so far.
    pub size: u64,
}

/// Bytes are written and hashed in batches of about this size.
const BATCH: usize = 1024 * 1024;

/// A batch of this size is written without waiting for more, if nothing more has arrived.
const SMALL_BATCH: usize = 256 * 1024;

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

    fn forget(&self, id: &UploadId) {
        locked(&self.states).remove(id);
    }
}

/// A file that is being written to, and the hash of all of it so far.
struct Sink {
    file: Arc<File>,
    disk: Arc<dyn Disk>,
    hasher: Hasher,
    written: u64,
    reserved: u64,
}

impl Sink {
    fn new(file: &File, disk: &Arc<dyn Disk>, hasher: Hasher, written: u64) -> io::Result<Sink> {
        let (file, disk) = (Arc::new(file.try_clone()?), Arc::clone(disk));
        Ok(Sink { file, disk, hasher, written, reserved: 0 })
    }

    /// Writes and hashes a batch, each piece while it is in the cache.
    fn take(&mut self, batch: Vec<Bytes>) -> io::Result<()> {
        self.reserved = reserve(&self.file, self.written, self.reserved);
        for piece in batch {
            self.disk.write(&self.file, &piece, self.written)?;
            self.hasher.update(&piece);
            self.written += piece.len() as u64;
        }
        Ok(())
    }
}

/// How receiving a body ended; what arrived before an error is written and counted.
struct Received {
    sink: Sink,
    result: Result<()>,
}

/// Moves a body into a sink: one batch is written while the next one arrives.
async fn receive<S>(sink: Sink, mut body: S) -> Result<Received>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let mut pump = Pump { idle: Some(sink), job: None };
    let mut batch = Batch::default();
    let result = loop {
        let next = match body.next().now_or_never() {
            Some(next) => next,
            None => {
                if !batch.is_empty() && (pump.is_idle() || batch.length >= SMALL_BATCH) {
                    pump.write(batch.take()).await?;
                }
                body.next().await
            }
        };
        match next {
            Some(Ok(bytes)) => {
                batch.add(bytes);
                if batch.length >= BATCH {
                    pump.write(batch.take()).await?;
                }
            }
            Some(Err(error)) => break Err(Error::Body(Arc::new(error))),
            None => break Ok(()),
        }
    };
    pump.write(batch.take()).await?;
    Ok(Received { sink: pump.finish().await?, result })
}

/// Pieces that were received and not yet handed to the disk.
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    /// Tiny pieces are joined: a client may send its blob byte by byte.
    tiny: BytesMut,
    length: usize,
}

/// A piece shorter than this is copied to its neighbours.
const TINY: usize = 4096;

impl Batch {
    fn add(&mut self, piece: Bytes) {
        self.length += piece.len();
        if piece.len() < TINY {
            self.tiny.extend_from_slice(&piece);
        } else {
            self.end_tiny();
            self.pieces.push(piece);
        }
    }

    fn end_tiny(&mut self) {
        if !self.tiny.is_empty() {
            self.pieces.push(self.tiny.split().freeze());
        }
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.end_tiny();
        self.length = 0;
        std::mem::take(&mut self.pieces)
    }
}

type Job = tokio::task::JoinHandle<(Sink, io::Result<()>)>;

/// A sink with at most one batch on its way to the disk.
struct Pump {
    idle: Option<Sink>,
    job: Option<Job>,
}

impl Pump {
    fn is_idle(&self) -> bool {
        self.job.as_ref().is_none_or(Job::is_finished)
    }

    /// Waits for the batch before, then starts writing this one.
    async fn write(&mut self, batch: Vec<Bytes>) -> Result<()> {
        let mut sink = self.settle().await?;
        self.job = Some(tokio::task::spawn_blocking(move || {
            let written = sink.take(batch);
            (sink, written)
        }));
        Ok(())
    }

    async fn finish(mut self) -> Result<Sink> {
        self.settle().await
    }

    async fn settle(&mut self) -> Result<Sink> {
        if let Some(job) = self.job.take() {
            let (sink, written) = job.await.map_err(|_| Error::Internal)?;
            written.at(|| path::UPLOADS.into())?;
            self.idle = Some(sink);
        }
        self.idle.take().ok_or(Error::Internal)
    }
}

impl Registry {
    /// Opens a session ("Pushing a blob monolithically", "… in chunks").
    pub async fn begin_upload(
        &self,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
        actor: &Actor,
    ) -> Result<UploadStatus> {
        let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
        let owner = Owner::new(actor.who.clone(), repo, algorithm);
        self.blocking(move |inner| {
            let id = UploadId::random();
            Session::create(&inner.tree, &id, owner)?;
            Ok(UploadStatus { id, size: 0 })
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
            Ok(session.remove(&inner.tree, &id, data)?)
        })
        .await
    }

    /// Takes a whole blob in one request.
    pub async fn put_blob(
        &self,
        repo: &RepoName,
        actor: &Actor,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        digest: &Digest,
    ) -> Result<()> {
        let algorithm = digest.algorithm();
        let (incoming, sink) = self
            .blocking(move |inner| {
                let incoming = Incoming::create(&inner.tree)?;
                let sink = Sink::new(incoming.file(), &inner.tree.disk, Hasher::new(algorithm), 0)
                    .at(|| inner.tree.room.at(path::UPLOADS))?;
                Ok((incoming, sink))
            })
            .await?;
        let received = receive(sink, body).await;
        self.promise(repo, digest, actor).await?;
        let to = Destination::new(repo, digest, actor);
        self.blocking(move |inner| {
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
        Ok(Sink::new(&data.file, &self.tree.disk, hasher, data.size).at(at)?)
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
        if let Err(error) = session.remove(&self.tree, id, data) {
            tracing::warn!(%error, "a finished upload session stays until gc removes it");
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

fn hash_file(file: &File, algorithm: Algorithm, size: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0u8; SMALL_BATCH];
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
