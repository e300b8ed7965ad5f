//! Memory is wiped when it is given back: the allocator of the program, and how much it keeps.
//!
//! Passwords come in through buffers that are not ours: hyper's, of a header and of a body, and
//! whatever copies them on the way. Those are freed, not wiped, and what is freed lies about until
//! something else happens to be put there: a core dump, a swap file or an overread would tell it.
//! One place that every byte of the heap passes needs no list of who had a copy.
//!
//! Of a large block only the beginning is wiped. Heads and forms are at most 64 KiB; larger buffers
//! are made for the bodies of uploads and downloads, and to wipe those costs 7 % of the processor
//! time of an upload. A large buffer may hold heads besides: those of requests that came behind one
//! another, of which only the first 64 KiB are covered by this: what lies behind is not unmapped either,
//! for buffers up to 4 MiB are kept for the next (see [`keep_buffers`]). What is still in use, the buffer of an
//! open connection for instance, is wiped when it is given back.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

/// How much of a block is wiped.
const MOST: usize = 64 * 1024;

/// The system's allocator, which gets memory back without what was in it.
#[derive(Debug)]
pub struct Wiping;

// SAFETY: every call is handed to the system's allocator as it came; `realloc` is the default, which
// takes new memory, copies and gives the old back.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back memory of this allocator, of this size, that nobody uses.
        unsafe { memory.write_bytes(0, layout.size().min(MOST)) };
        // Nothing reads the zeros: without this the compiler could leave them out.
        black_box(memory);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Blocks below this size are kept for the next that asks for one; larger ones come from the kernel one by
/// one, and go back to it at once.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 4 * 1024 * 1024;

/// Of what is free at the end of a heap so much is kept.
#[cfg(target_env = "gnu")]
const SPARE: i32 = 8 * 1024 * 1024;

/// Tells the system's allocator that buffers of a megabyte come and go: call it before there is any other
/// thread.
///
/// Left to itself glibc gives the buffers of an upload back to the kernel and gets others, of which every
/// page is cleared again: a tenth of an upload's processor time. What is really large, such as an
/// index.json of 100,000 tags, would be kept by whichever thread happened to read it.
pub fn keep_buffers() {
    // SAFETY: two numbers are set; no other thread asks for memory meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, KEPT);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE);
    }
}

/// Gives to the kernel what is free between what is in use, by whole pages, and the free end of the main heap:
/// after work that needed much memory at once and comes seldom, because buffers have to be fetched again
/// ([`keep_buffers`]). The end of a thread's own heap stays. Whoever asks for memory meanwhile may wait for
/// milliseconds.
pub fn give_back() {
    // SAFETY: glibc says that any thread may call it at any time, and it takes a number.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::give_back;

    /// Bytes of the process's own memory that are there now.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn what_is_free_between_what_is_kept_goes_back() {
        let mut all: Vec<Option<Box<[u8; 100]>>> =
            (0..1_000_000).map(|_| Some(Box::new([7; 100]))).collect();
        let kept = |(n, block): (usize, &mut Option<Box<[u8; 100]>>)| {
            if n % 1000 != 0 {
                *block = None;
            }
        };
        all.iter_mut().enumerate().for_each(kept);
        let before = resident();
        give_back();
        let after = resident();
        assert!(all.iter().flatten().all(|block| **block == [7; 100]));
        // Other tests use memory meanwhile.
        assert!(after + 50_000_000 < before, "{before} bytes, then {after}");
    }
}
