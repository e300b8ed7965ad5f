//! The bytes of a file as a slice that nobody has to read.
//!
//! hyper takes answers as [`Bytes`], and hands the very slices that it was given to the connection. A
//! slice over a mapped file costs no copy on that way; the connection knows it by its address and has
//! the kernel send the file instead. Whoever does read it, because it copies what it gets, reads the
//! file's bytes.
//!
//! # Why this is sound
//!
//! A `&[u8]` promises that its memory stays readable and does not change.
//!
//! - It stays mapped: the mapping is made in [`Map::new`], given back in `drop`, and every slice
//!   borrows from the `Map` in between.
//! - It does not change: only sealed blobs are mapped ([`OpenBlob::is_sealed`]). They belong to the
//!   server's account, nobody has the right to write to them, and the server never does. Root may all
//!   the same, and so may the disk: then bytes are sent that do not have the digest, as they would be
//!   if they had been read. No decision of the program hangs on them.
//! - A page behind the end of a file that was cut short cannot be read: whoever does is ended by
//!   SIGBUS. Blobs are never cut, and nobody reads here: hyper copies no slice of a connection that
//!   writes vectors, and [`Outlet`](super::Outlet) does. That is a test (tests/pull.rs).
//!
//! [`Bytes`]: bytes::Bytes
//! [`OpenBlob::is_sealed`]: crate::registry::OpenBlob::is_sealed
#![allow(unsafe_code)]

use std::fs::File;
use std::ptr::NonNull;
use std::{io, slice};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A part of a file, mapped for reading.
#[derive(Debug)]
pub(super) struct Map {
    start: NonNull<u8>,
    len: usize,
    /// Bytes before the part: a mapping begins with a page.
    lead: usize,
}

// SAFETY: it is memory that is only ever read, whichever thread does.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes from `first` on of a file that does not change.
    pub(super) fn new(file: &File, first: u64, len: usize) -> io::Result<Map> {
        let lead = usize::try_from(first % rustix::param::page_size() as u64).unwrap_or(0);
        let whole = len.checked_add(lead).ok_or(io::ErrorKind::FileTooLarge)?;
        let (access, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so no other memory is touched.
        let start =
            unsafe { mmap(std::ptr::null_mut(), whole, access, flags, file, first - lead as u64) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Map { start, len: whole, lead })
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` on are mapped as long as this lives, and do not change (above).
        let whole = unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) };
        &whole[self.lead..]
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and whoever borrowed from it is gone.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
