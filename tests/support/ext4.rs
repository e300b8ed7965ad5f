//! An ext4 file system of a test's own, whose limits are known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::run;

/// So many names an inode may have.
pub const MOST_LINKS: u64 = 65_000;

/// An ext4 file system in a file, mounted; gone when dropped. Needs root.
pub struct Ext4 {
    room: tempfile::TempDir,
}

impl Ext4 {
    /// Of 256 MiB.
    pub fn new() -> Ext4 {
        let room = tempfile::Builder::new()
            .prefix("stillage-ext4-")
            .tempdir()
            .expect("a temporary directory");
        let image = room.path().join("image");
        let file = fs::File::create(&image).expect("the image file");
        file.set_len(256 * 1024 * 1024).expect("a sparse image");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)).ok();
        let disk = Ext4 { room };
        fs::create_dir(disk.path()).expect("the mount point");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path())).ok();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.room.path().join("disk")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

fn unmount(path: &Path) {
    let unmounted = Command::new("umount").arg(path).output();
    if !matches!(&unmounted, Ok(output) if output.status.success()) {
        eprintln!("umount {}: {unmounted:?}", path.display());
    }
}
