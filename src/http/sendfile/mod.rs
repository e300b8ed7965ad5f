//! Blobs from the disk to the socket, without a copy in between (sendfile(2)), behind an HTTP library
//! that knows nothing of it.
//!
//! A blob's body is made of slices over the mapped file ([`Windows::body`]). hyper passes them on
//! untouched, and [`Outlet`], which is the connection's writing side, knows them by their addresses:
//! it has the kernel send that part of the file, and the head before it in the same packet. The files
//! of a connection are known to that connection only ([`Windows`]).
//!
//! What is not in memory is read ahead on a thread of its own, so that a disk keeps no other client
//! waiting.

mod ahead;
mod map;
mod outlet;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;

use crate::registry::OpenBlob;
use map::Map;
pub(super) use outlet::Outlet;

/// The files of which a connection is sending a part.
#[derive(Clone, Debug, Default)]
pub(super) struct Windows(Arc<Mutex<Vec<Entry>>>);

/// Addresses that stand for a part of a file.
#[derive(Clone, Debug)]
struct Entry {
    start: usize,
    len: usize,
    source: Arc<Source>,
    /// Where in the file the first address lies.
    first: u64,
}

/// A file that is sent.
#[derive(Debug)]
struct Source {
    file: File,
    /// For messages.
    path: PathBuf,
}

/// A part of a file that a slice stands for.
#[derive(Clone, Debug)]
struct Part {
    source: Arc<Source>,
    at: u64,
    len: usize,
}

/// A mapping that its connection knows of. As long as it lives its addresses are nobody else's, so it
/// is forgotten before they are given back.
struct Window {
    map: Map,
    windows: Windows,
}

impl Windows {
    /// The body of `len` bytes of a blob from `first` on; the blob is given back where it cannot be
    /// sent in this way: others could change it, or its file system maps no files.
    pub(super) fn body(&self, blob: OpenBlob, first: u64, len: u64) -> Result<Body, OpenBlob> {
        let map = match usize::try_from(len) {
            Ok(len) if blob.is_sealed() => Map::new(&blob.file, first, len).ok(),
            _ => None,
        };
        let Some(map) = map else { return Err(blob) };
        let source = Arc::new(Source { file: blob.file, path: blob.path });
        let bytes = self.add(map, first, Arc::clone(&source));
        Ok(Body::from_stream(ahead::pieces(source, bytes, first)))
    }

    fn add(&self, map: Map, first: u64, source: Arc<Source>) -> Bytes {
        let bytes = map.as_ref();
        let (start, len) = (bytes.as_ptr().addr(), bytes.len());
        self.entries().push(Entry { start, len, source, first });
        Bytes::from_owner(Window { map, windows: self.clone() })
    }

    /// What a slice stands for, if it is of a file.
    fn find(&self, slice: &[u8]) -> Option<Part> {
        let at = slice.as_ptr().addr();
        let entries = self.entries();
        let entry = entries.iter().find(|entry| at.wrapping_sub(entry.start) < entry.len)?;
        let skipped = at - entry.start;
        let len = slice.len().min(entry.len - skipped);
        Some(Part { source: Arc::clone(&entry.source), at: entry.first + skipped as u64, len })
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        self.map.as_ref()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let start = self.map.as_ref().as_ptr().addr();
        self.windows.entries().retain(|entry| entry.start != start);
    }
}
