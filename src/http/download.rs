//! How a blob goes out: a small one with the head of its answer, a large one by sendfile where the
//! connection can, and otherwise through buffers.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use rustix::io::ReadWriteFlags;
use tokio::sync::Semaphore;

use super::memory::{FREE, Held, Memory};
use super::sendfile::Windows;
use crate::registry::OpenBlob;

/// How much of a blob is read at once; and where there is no memory left for that, of which a
/// download may hold two pieces.
const PIECE: usize = 256 * 1024;
const SMALL_PIECE: usize = 32 * 1024;

/// What is no longer is read and goes out in one write with the head: a copy of so much costs less
/// than what it takes to send it without one. It is not counted as memory either.
const AT_ONCE: usize = FREE;

/// The bytes of a blob from `first` on, `len` of them, over a connection that can send the files of
/// `windows` or none.
///
/// A file that turns out shorter, or that somebody changes meanwhile, ends the connection: length and
/// digest were promised already.
pub(super) fn of_blob(
    blob: OpenBlob,
    (first, len): (u64, u64),
    windows: Option<&Windows>,
    memory: &Arc<Memory>,
) -> Body {
    if len == 0 {
        return Body::empty();
    }
    if let Some(whole) = at_once(&blob, first, len) {
        return Body::from(whole);
    }
    let blob = match windows {
        Some(windows) => match windows.body(blob, first, len) {
            Ok(body) => return body,
            Err(blob) => blob,
        },
        None => blob,
    };
    Pump::new(blob, first, len, memory).body()
}

/// A short part of a blob, if all of it is in memory.
fn at_once(blob: &OpenBlob, first: u64, len: u64) -> Option<Bytes> {
    let len = usize::try_from(len).ok().filter(|len| *len <= AT_ONCE)?;
    let mut short = Short::new(len);
    let whole = read_now(blob, &mut short.room[..len], first) == Some(len);
    (whole && blob.is_unchanged().ok()?).then(|| Bytes::from_owner(short))
}

/// Shorter parts have a room of their length: a byte that nobody takes must not hold 64 KiB.
const ROOMY: usize = 8 * 1024;

/// So many rooms for short parts each thread keeps: a part is mostly sent before the next one is read.
const ROOMS: usize = 4;

thread_local! {
    /// Rooms that were used before. New ones would be cleared, and wiped when they are given back: as
    /// much work as to fill them.
    static SPARE_ROOMS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A short part on its way.
struct Short {
    room: Box<[u8]>,
    len: usize,
}

impl Short {
    fn new(len: usize) -> Short {
        if len < ROOMY {
            return Short { room: vec![0; len].into(), len };
        }
        let used = SPARE_ROOMS.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        Short { room: used.unwrap_or_else(|| vec![0; AT_ONCE].into()), len }
    }
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.room);
        if room.len() < AT_ONCE {
            return;
        }
        // A thread that ends keeps none.
        let _ = SPARE_ROOMS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < ROOMS {
                spare.push(room);
            }
        });
    }
}

/// Reads as much as is in memory; `None` if that is nothing, or the file system does not say.
fn read_now(blob: &OpenBlob, bytes: &mut [u8], at: u64) -> Option<usize> {
    let mut bufs = [IoSliceMut::new(bytes)];
    let read = rustix::io::preadv2(&blob.file, &mut bufs, at, ReadWriteFlags::NOWAIT);
    read.ok().filter(|read| *read > 0)
}

/// Reads a blob piece by piece: here where it is in memory, on the blocking pool where it is not.
struct Pump {
    blob: Arc<OpenBlob>,
    at: u64,
    left: u64,
    memory: Arc<Memory>,
    small: Arc<Semaphore>,
    spare: Spare,
}

/// Buffers whose bytes are sent.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

impl Pump {
    fn new(blob: OpenBlob, at: u64, left: u64, memory: &Arc<Memory>) -> Pump {
        let (memory, small) = (Arc::clone(memory), Arc::new(Semaphore::new(2)));
        Pump { blob: Arc::new(blob), at, left, memory, small, spare: Spare::default() }
    }

    fn body(self) -> Body {
        Body::from_stream(stream::try_unfold(self, |mut pump| async move {
            let piece = pump.piece().await?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, pump)))
        }))
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let (want, held) = self.room().await;
        let mut piece = Piece { bytes: self.buffer(want), spare: Arc::clone(&self.spare), held };
        let got = match read_now(&self.blob, &mut piece.bytes, self.at) {
            Some(got) => got,
            None => {
                let (blob, at) = (Arc::clone(&self.blob), self.at);
                let read = tokio::task::spawn_blocking(move || {
                    let got = blob.file.read_at(&mut piece.bytes, at);
                    (piece, got)
                });
                let got;
                (piece, got) = read.await.map_err(io::Error::other)?;
                got.inspect_err(|error| self.log(format_args!("a blob cannot be read: {error}")))?
            }
        };
        if got == 0 {
            self.log(format_args!("a blob is shorter than it was when it was opened"));
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !self.blob.is_unchanged()? {
            self.log(format_args!("a blob was changed while it was sent"));
            return Err(io::Error::other("the blob was changed while it was sent"));
        }
        piece.bytes.truncate(got);
        self.at += got as u64;
        self.left -= got as u64;
        Ok(Some(Bytes::from_owner(piece)))
    }

    /// How much to read, and the leave to hold it until it is sent.
    async fn room(&self) -> (usize, Option<Held>) {
        let want = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        if want > SMALL_PIECE
            && let Some(held) = self.memory.blob(want)
        {
            return (want, Some(held));
        }
        // Nobody closes it; it waits until the client has taken the pieces before.
        let small = Arc::clone(&self.small).acquire_owned().await.ok();
        (want.min(SMALL_PIECE), small)
    }

    /// One that was used before, where there is one: a new one would be cleared first.
    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = locked(&self.spare).pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    fn log(&self, what: std::fmt::Arguments<'_>) {
        tracing::error!(path = %self.blob.path.display(), at = self.at, "{what}");
    }
}

fn locked(spare: &Spare) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
    spare.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes on their way, whose buffer is used again.
struct Piece {
    bytes: Vec<u8>,
    spare: Spare,
    held: Option<Held>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Where there was no leave to hold it there is none to keep it either.
        if self.held.is_some() {
            locked(&self.spare).push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::io::Write;
    use std::time::Duration;

    fn of_file(bytes: &[u8], first: u64, len: u64) -> Body {
        of_file_in(bytes, first, len, Memory::default())
    }

    fn of_file_in(bytes: &[u8], first: u64, len: u64, memory: Memory) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let blob = OpenBlob::sealed(file, bytes.len() as u64);
        of_blob(blob, (first, len), None, &Arc::new(memory))
    }

    async fn read(body: Body) -> Result<Vec<u8>, axum::Error> {
        let mut stream = body.into_data_stream();
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_file_comes_whole_or_in_part() {
        let bytes: Vec<u8> = (0..=250).cycle().take(PIECE * 2 + 77).collect();
        let len = bytes.len() as u64;
        assert_eq!(read(of_file(&bytes, 0, len)).await.unwrap(), bytes);
        let part = read(of_file(&bytes, 100, PIECE as u64)).await.unwrap();
        assert_eq!(part, bytes[100..100 + PIECE]);
        assert_eq!(read(of_file(&bytes, 1000, 9)).await.unwrap(), bytes[1000..1009]);
        assert_eq!(read(of_file(b"", 0, 0)).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn without_memory_a_file_goes_out_in_two_small_pieces_at_a_time() {
        let bytes: Vec<u8> = (0..=250).cycle().take(SMALL_PIECE * 5 + 77).collect();
        let body = of_file_in(&bytes, 0, bytes.len() as u64, Memory::none());
        let mut stream = body.into_data_stream();
        let first = [stream.next().await.unwrap().unwrap(), stream.next().await.unwrap().unwrap()];
        assert!(first.iter().all(|piece| piece.len() == SMALL_PIECE));
        let more = tokio::time::timeout(Duration::from_millis(50), stream.next());
        assert!(more.await.is_err(), "a third piece while two are not sent");
        let mut all = first.concat();
        drop(first);
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(all, bytes);
    }

    #[test]
    fn rooms_for_short_parts_are_used_again_and_few_are_kept() {
        let of = |text: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            at_once(&OpenBlob::sealed(file, text.len() as u64), 0, text.len() as u64).unwrap()
        };
        let kept = || SPARE_ROOMS.with_borrow(Vec::len);
        let first = of(&[1; ROOMY + 1]);
        let room = first.as_ptr();
        drop(first);
        assert_eq!(kept(), 1);
        let tiny = of(b"tiny");
        let second = of(&[2; ROOMY]);
        assert_eq!((second.as_ptr(), &*second), (room, &[2; ROOMY][..]));
        let many: Vec<Bytes> = (0..2 * ROOMS).map(|_| of(&[3; AT_ONCE])).collect();
        assert!(many.iter().all(|bytes| **bytes == [3; AT_ONCE]) && *second == [2; ROOMY]);
        drop((second, many));
        assert_eq!(kept(), ROOMS);
        assert_eq!(tiny, "tiny");
    }

    #[tokio::test]
    async fn a_file_that_shrank_is_an_error() {
        assert!(read(of_file(b"short", 0, 6)).await.is_err());
        assert!(read(of_file(&[7; AT_ONCE], 0, AT_ONCE as u64 + 1)).await.is_err());
    }
}
