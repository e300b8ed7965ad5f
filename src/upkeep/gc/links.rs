//! How many names an inode has left, and what goes with the last one.

use std::collections::HashMap;

use rustix::fs::Stat;

use crate::layout::Inode;

/// Counts names. In a run the file system does; a dry run has to remember what would be gone.
#[derive(Debug, Default)]
pub(super) struct Links {
    dry_run: bool,
    gone: HashMap<Inode, u64>,
}

impl Links {
    pub(super) fn new(dry_run: bool) -> Links {
        Links { dry_run, gone: HashMap::new() }
    }

    /// One name of an inode goes: how many others it has, and the bytes that this gives back.
    pub(super) fn unlink(&mut self, stat: &Stat) -> (u64, u64) {
        let others = self.others(stat);
        if self.dry_run && stat.st_nlink > 1 {
            *self.gone.entry(Inode::of(stat)).or_default() += 1;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        (others, if others == 0 { blocks } else { 0 })
    }

    /// Whether a dry run counts a name of the inode as gone: then it would have changed just now.
    pub(super) fn is_touched(&self, stat: &Stat) -> bool {
        self.gone.contains_key(&Inode::of(stat))
    }

    /// How many names an inode has besides the one that was looked at.
    #[allow(clippy::useless_conversion, reason = "it has 32 bits on other machines")]
    pub(super) fn others(&self, stat: &Stat) -> u64 {
        let gone = self.gone.get(&Inode::of(stat)).copied().unwrap_or(0);
        u64::from(stat.st_nlink).saturating_sub(1 + gone)
    }
}
