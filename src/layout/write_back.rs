//! Dirty pages of a large file, sent to the disk while more of it arrives: what the last fsync(2) has
//! left to do is then little.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc;

/// Asks the kernel to begin with `len` bytes at `offset`, and waits for nothing.
///
/// It promises nothing and hides nothing: an error of the disk is told by the fsync(2) that follows,
/// for this does not wait for the pages and so takes no error away.
pub(super) fn begin(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: it is given a descriptor that is open, and no memory.
    let _ = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    };
}
