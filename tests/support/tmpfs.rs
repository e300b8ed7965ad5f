//! A file system of a test's own, as small as it likes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::run;

/// A tmpfs; unmounted when dropped. Needs root.
pub struct Tmpfs {
    room: tempfile::TempDir,
}

impl Tmpfs {
    /// Of this many MiB.
    pub fn new(mib: u64) -> Tmpfs {
        let room = tempfile::Builder::new()
            .prefix("stillage-tmpfs-")
            .tempdir()
            .expect("a temporary directory");
        fs::create_dir(room.path().join("mount")).expect("the mount point");
        let size = format!("size={mib}m");
        let tmpfs = Tmpfs { room };
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(tmpfs.path()))
            .ok();
        tmpfs
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.room.path().join("mount")
    }

    /// How many bytes are free.
    pub fn free(&self) -> u64 {
        free(&self.path())
    }

    /// Fills it with a file until so many bytes are free; removing the file empties it again.
    pub fn fill(&self, leave: u64) -> PathBuf {
        let filler = self.path().join("filler");
        let file = fs::File::create(&filler).expect("a file");
        let len = self.free() - leave;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).expect("space");
        filler
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn free(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("statvfs");
    stat.f_bavail * stat.f_frsize
}
