//! Bodies on their way to the disk: from a socket to a file, hashed on the way, never a whole blob in
//! memory.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Error, Result};
use crate::layout::space::{Growth, Space};
use crate::layout::{self, At, Disk};
use crate::oci::Hasher;

/// As soon as any upload has gathered so much it is written and hashed. A batch may be longer by what one read
/// of the connection gives.
const LEAST_BATCH: usize = 64 * 1024;

/// Those with a permit of [`Budget::large`] gather so much.
const BATCH: usize = 1024 * 1024;

/// Those with one of [`Budget::largest`] gather so much: each batch wakes the thread that hashes it, and its end the
/// one that receives.
const LARGEST_BATCH: usize = 4 * BATCH;

/// How many uploads may gather how much. A permit is for the batch that is gathered and the one before it, on its
/// way to the disk: all of them hold at most 64 times 2 MiB, 4 times 6 MiB more, 128 KiB for each without a permit,
/// and for each two reads of its connection.
struct Budget {
    large: Semaphore,
    largest: Semaphore,
}

impl Budget {
    const fn new() -> Budget {
        Budget { large: Semaphore::const_new(64), largest: Semaphore::const_new(4) }
    }
}

static BUDGET: Budget = Budget::new();

/// So much is written before the disk is asked to begin with it: the fsync at the end then finds little
/// left.
const BEGIN_EVERY: u64 = 16 * 1024 * 1024;

/// A file that is being written to, and the hash of all of it so far.
pub(super) struct Sink {
    file: Arc<File>,
    /// For messages.
    at: PathBuf,
    disk: Arc<dyn Disk>,
    growth: Growth,
    pub(super) hasher: Hasher,
    pub(super) written: u64,
    /// Up to where the disk has been asked to begin.
    begun: u64,
}

impl Sink {
    pub(super) fn new(
        file: &File,
        at: PathBuf,
        disk: &Arc<dyn Disk>,
        space: &Arc<Space>,
        hasher: Hasher,
        written: u64,
    ) -> io::Result<Sink> {
        let (file, disk) = (Arc::new(file.try_clone()?), Arc::clone(disk));
        Ok(Sink { file, at, disk, growth: space.growth(), hasher, written, begun: written })
    }

    /// Writes and hashes a batch, each piece while it is in the cache.
    fn take(&mut self, batch: Vec<Bytes>) -> layout::Result<()> {
        let len = batch.iter().map(|piece| piece.len() as u64).sum();
        self.growth.before(&self.file, self.written, len)?;
        for piece in batch {
            let len = piece.len() as u64;
            self.disk.write(&self.file, &piece, self.written).at(|| self.at.clone())?;
            self.hasher.update(&piece);
            self.growth.after(self.written, len);
            self.written += len;
        }
        let waiting = self.written - self.begun;
        if waiting >= BEGIN_EVERY {
            self.disk.begin_write_back(&self.file, self.begun, waiting);
            self.begun = self.written;
        }
        Ok(())
    }

    /// Cuts the file to what was written whole, so that no space stays reserved past its end: whoever
    /// sent this may never come back.
    fn cut(&self) -> layout::Result<()> {
        self.disk.set_len(&self.file, self.written).at(|| self.at.clone())
    }
}

/// How receiving a body ended; what arrived before an error is written and counted.
pub(super) struct Received {
    pub(super) sink: Sink,
    pub(super) result: Result<()>,
}

/// Moves a body into a sink: one batch is written while the next one arrives.
pub(super) async fn receive<S>(sink: Sink, body: S) -> Result<Received>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    receive_within(&BUDGET, sink, body).await
}

async fn receive_within<S>(budget: &'static Budget, sink: Sink, body: S) -> Result<Received>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let permits = Permits::new(budget);
    let mut pump = Pump { idle: Some(sink), failed: None, job: None, permits };
    let poured = pump.pour(body).await;
    let sink = pump.settle().await?;
    let failed = pump.failed.take();
    let is_ahead = failed.is_some() || sink.growth.is_ahead_of(sink.written);
    let result = failed.map_or(poured, |error| Err(error.into()));
    if !is_ahead {
        return Ok(Received { sink, result });
    }
    let cut = tokio::task::spawn_blocking(move || sink.cut().map(|()| sink));
    let sink = cut.await.map_err(|_| Error::Internal)??;
    Ok(Received { sink, result })
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

/// What an upload has of the budget. A batch on its way to the disk has a copy: whoever sent it may be gone before
/// it is written.
#[derive(Clone)]
struct Permits {
    of: &'static Budget,
    large: Option<Arc<SemaphorePermit<'static>>>,
    largest: Option<Arc<SemaphorePermit<'static>>>,
}

impl Permits {
    fn new(of: &'static Budget) -> Permits {
        Permits { of, large: None, largest: None }
    }

    /// How long a batch may become.
    fn limit(&self) -> usize {
        match (&self.large, &self.largest) {
            (None, _) => LEAST_BATCH,
            (Some(_), None) => BATCH,
            (Some(_), Some(_)) => LARGEST_BATCH,
        }
    }

    /// Asks for more if a batch is as long as it may be.
    fn grow(&mut self, length: usize) {
        if self.large.is_none() && length >= LEAST_BATCH {
            self.large = self.of.large.try_acquire().ok().map(Arc::new);
        }
        if self.large.is_some() && self.largest.is_none() && length >= BATCH {
            self.largest = self.of.largest.try_acquire().ok().map(Arc::new);
        }
    }

    /// Leaves all of it to others.
    fn give_back(&mut self) {
        (self.large, self.largest) = (None, None);
    }
}

type Job = tokio::task::JoinHandle<(Sink, layout::Result<()>)>;

/// A sink with at most one batch on its way to the disk.
struct Pump {
    idle: Option<Sink>,
    /// Why the last batch was not written whole: nothing is written after it.
    failed: Option<layout::Error>,
    job: Option<Job>,
    permits: Permits,
}

impl Pump {
    /// Writes what the body holds, until it ends or something fails.
    async fn pour<S>(&mut self, mut body: S) -> Result<()>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
    {
        let mut batch = Batch::default();
        let ended = loop {
            if self.failed.is_some() {
                return Ok(());
            }
            let next = match body.next().now_or_never() {
                Some(next) => next,
                // The client is slower than the disk.
                None if self.job.is_none() && batch.is_empty() => {
                    self.permits.give_back();
                    body.next().await
                }
                None if self.job.is_none() => {
                    self.write(batch.take()).await?;
                    continue;
                }
                // The disk is busy: the batch grows for as long. Each that is handed over wakes another
                // thread, and its end this one, which costs as much as to hash some of it. That the
                // disk failed is known at once, whether or not more comes.
                None => tokio::select! {
                    biased;
                    next = body.next() => next,
                    ended = self.end_job() => {
                        ended?;
                        continue;
                    }
                },
            };
            match next {
                Some(Ok(bytes)) => {
                    batch.add(bytes);
                    self.permits.grow(batch.length);
                    if batch.length >= self.permits.limit() {
                        self.write(batch.take()).await?;
                    }
                }
                Some(Err(error)) => break Err(Error::Body(Arc::new(error))),
                None => break Ok(()),
            }
        };
        self.write(batch.take()).await?;
        ended
    }

    /// Waits for the batch before, then starts writing this one.
    async fn write(&mut self, batch: Vec<Bytes>) -> Result<()> {
        let mut sink = self.settle().await?;
        if self.failed.is_some() {
            self.idle = Some(sink);
            return Ok(());
        }
        let permits = self.permits.clone();
        self.job = Some(tokio::task::spawn_blocking(move || {
            let written = sink.take(batch);
            drop(permits);
            (sink, written)
        }));
        Ok(())
    }

    /// Waits for the batch on its way, and gives the sink.
    async fn settle(&mut self) -> Result<Sink> {
        self.end_job().await?;
        self.idle.take().ok_or(Error::Internal)
    }

    /// Waits for the batch on its way. Whoever does not wait until then has changed nothing.
    async fn end_job(&mut self) -> Result<()> {
        let Some(job) = &mut self.job else { return Ok(()) };
        let ended = job.await;
        self.job = None;
        let (sink, written) = ended.map_err(|_| Error::Internal)?;
        self.failed = written.err();
        self.idle = Some(sink);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::layout::space::MinFree;
    use crate::layout::{RealDisk, Tree};
    use crate::oci::Algorithm;
    use futures_util::stream;

    /// With a tree, of which it knows how much space there is.
    fn sink(file: &File) -> (tempfile::TempDir, Sink) {
        let root = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let tree = Tree::open(root.path(), Arc::clone(&disk)).unwrap();
        let space = Arc::new(Space::new(&tree, MinFree::Bytes(0)));
        let (at, hasher) = (PathBuf::from("the file"), Hasher::new(Algorithm::Sha256));
        (root, Sink::new(file, at, &disk, &space, hasher, 0).unwrap())
    }

    fn piece(byte: u8) -> io::Result<Bytes> {
        Ok(Bytes::from(vec![byte; 100_000]))
    }

    #[test]
    fn few_gather_much_and_only_while_they_need_it() {
        static BUDGET: Budget = Budget::new();
        let mut uploads: Vec<Permits> = (0..65).map(|_| Permits::new(&BUDGET)).collect();
        uploads.iter_mut().for_each(|upload| upload.grow(LEAST_BATCH - 1));
        assert!(uploads.iter().all(|upload| upload.limit() == LEAST_BATCH));
        uploads.iter_mut().for_each(|upload| upload.grow(LEAST_BATCH));
        uploads.iter_mut().for_each(|upload| upload.grow(BATCH));
        let limits: Vec<usize> = uploads.iter().map(Permits::limit).collect();
        let most = [vec![LARGEST_BATCH; 4], vec![BATCH; 60], vec![LEAST_BATCH]].concat();
        assert_eq!(limits, most);
        // A batch on its way keeps what it was gathered with.
        let on_its_way = uploads[3].clone();
        uploads[3].give_back();
        uploads[20].grow(BATCH);
        assert_eq!(uploads[20].limit(), BATCH);
        drop(on_its_way);
        uploads[20].grow(BATCH);
        uploads[64].grow(BATCH);
        assert_eq!((uploads[20].limit(), uploads[64].limit()), (LARGEST_BATCH, BATCH));
        drop(uploads);
        assert_eq!(free(&BUDGET), (64, 4));
    }

    fn free(budget: &Budget) -> (usize, usize) {
        (budget.large.available_permits(), budget.largest.available_permits())
    }

    #[tokio::test]
    async fn a_silent_client_keeps_nothing_of_the_budget() {
        static BUDGET: Budget = Budget::new();
        for last in [LARGEST_BATCH, LARGEST_BATCH / 2, LEAST_BATCH] {
            let file = tempfile::tempfile().unwrap();
            // A last batch of the largest size leaves nothing over when it is handed over.
            let sent = LARGEST_BATCH + last;
            let pieces = (0..sent / LEAST_BATCH).map(|_| Ok(Bytes::from(vec![1; LEAST_BATCH])));
            let body = stream::iter(pieces).chain(stream::pending());
            let (_root, sink) = sink(&file);
            let upload = tokio::spawn(receive_within(&BUDGET, sink, Box::pin(body)));
            let written = async {
                while file.metadata().unwrap().len() < sent as u64 || free(&BUDGET) != (64, 4) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), written).await.expect("it is given back");
            upload.abort();
        }
    }

    #[test]
    fn a_batch_on_its_way_keeps_its_permits_though_its_sender_is_gone() {
        static BUDGET: Budget = Budget::new();
        // The one thread for blocking work is busy: what is handed to it waits.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (go, told) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || told.recv());
        let pieces = (0..=64).map(|_| Ok(Bytes::from(vec![1; LEAST_BATCH])));
        let body = stream::iter(pieces).chain(stream::pending());
        let file = tempfile::tempfile().unwrap();
        let (_root, sink) = sink(&file);
        let upload = runtime.spawn(receive_within(&BUDGET, sink, Box::pin(body)));
        until(|| free(&BUDGET) == (63, 3));
        upload.abort();
        assert!(runtime.block_on(upload).is_err_and(|error| error.is_cancelled()));
        assert_eq!((free(&BUDGET), file.metadata().unwrap().len()), ((63, 3), 0));
        go.send(()).unwrap();
        until(|| free(&BUDGET) == (64, 4));
        assert_eq!(file.metadata().unwrap().len(), LARGEST_BATCH as u64);
    }

    fn until(mut done: impl FnMut() -> bool) {
        let begun = std::time::Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 seconds");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_disk_that_fails_ends_an_upload_whose_client_is_silent() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (body, (_root, sink)) =
            (stream::iter([piece(1)]).chain(stream::pending()), sink(&full));
        let received = tokio::time::timeout(Duration::from_secs(20), receive(sink, body));
        // Nor can a device be cut to its length.
        assert!(received.await.expect("an answer").is_err());
    }

    #[tokio::test]
    async fn what_came_is_written_while_the_client_is_silent() {
        let file = tempfile::tempfile().unwrap();
        let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
        let body =
            stream::unfold(
                pieces,
                |mut pieces| async move { Some((pieces.recv().await?, pieces)) },
            );
        let (_root, sink) = sink(&file);
        let received = tokio::spawn(receive(sink, Box::pin(body)));
        for number in 1..=3 {
            sender.send(piece(number)).unwrap();
            let written = async {
                while file.metadata().unwrap().len() < 100_000 * u64::from(number) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), written).await.expect("it is written");
        }
        // Both come while one is on its way, or together, and more than one batch may hold: nothing is
        // lost, and their order stays.
        (4..=120).for_each(|number| sender.send(piece(number)).unwrap());
        drop(sender);
        let received = received.await.unwrap().unwrap();
        received.result.unwrap();
        let all: Vec<u8> = (1..=120).flat_map(|byte| vec![byte; 100_000]).collect();
        assert_eq!(received.sink.written, all.len() as u64);
        assert!(layout::read_all(&file, 1 << 30, PathBuf::new).unwrap() == all);
    }
}
