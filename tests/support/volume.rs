//! A small file system in a file, of a kind that a disk has, mounted; gone when dropped. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::run;

/// So many names an inode of ext4 may have.
pub const MOST_LINKS: u64 = 65_000;

/// A mounted image.
pub struct Volume {
    room: tempfile::TempDir,
}

impl Volume {
    /// ext4 without blocks that only root may use, with these further arguments for mkfs.ext4.
    pub fn ext4(mib: u64, args: &[&str]) -> Volume {
        Volume::make(mib, Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(args))
    }

    /// btrfs with a quota on each subvolume; the tree belongs into `path().join("quota")`.
    pub fn btrfs_with_quota(mib: u64, quota: &str) -> Volume {
        let volume = Volume::make(mib, Command::new("mkfs.btrfs").args(["-q", "-f"]));
        let (at, subvolume) = (volume.path(), volume.path().join("quota"));
        run(Command::new("btrfs").args(["quota", "enable"]).arg(at)).ok();
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(&subvolume)).ok();
        run(Command::new("btrfs").args(["qgroup", "limit", quota]).arg(&subvolume)).ok();
        volume
    }

    fn make(mib: u64, mkfs: &mut Command) -> Volume {
        let room = tempfile::Builder::new().prefix("stillage-volume-").tempdir().expect("a room");
        let image = room.path().join("image");
        let file = fs::File::create(&image).expect("the image's file");
        file.set_len(mib << 20).expect("a sparse image");
        run(mkfs.arg(&image)).ok();
        let volume = Volume { room };
        fs::create_dir(volume.path()).expect("the mount point");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(volume.path())).ok();
        volume
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.room.path().join("mount")
    }

    /// Mounts it anew with these options, `ro` for instance.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(self.path())).ok();
    }

    /// Takes all of its space but `leave` bytes; removing the file gives it back.
    pub fn fill(&self, leave: u64) -> PathBuf {
        let filler = self.path().join("filler");
        let file = fs::File::create(&filler).expect("a file");
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        let len = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
        let flags = rustix::fs::FallocateFlags::empty();
        // What the blocks themselves take to be found again is not foreseen: a little less fits.
        let fits = (0..64).any(|less| {
            rustix::fs::fallocate(&file, flags, 0, len.saturating_sub(less << 16).max(1)).is_ok()
        });
        assert!(fits, "nothing fits into {}", self.path().display());
        filler
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

/// Something mounted beneath a tree; gone when dropped.
pub struct Bound(PathBuf);

impl Bound {
    /// `mount --bind FROM TO`.
    pub fn new(from: &Path, to: &Path) -> Bound {
        run(Command::new("mount").arg("--bind").args([from, to])).ok();
        Bound(to.to_owned())
    }

    /// A directory mounted over itself, read-only.
    pub fn read_only(path: &Path) -> Bound {
        let bound = Bound::new(path, path);
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(path)).ok();
        bound
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn unmount(path: &Path) {
    // A server that is still about to end would keep it otherwise.
    let unmounted = Command::new("umount").arg("-l").arg(path).output();
    if !matches!(&unmounted, Ok(output) if output.status.success()) {
        eprintln!("umount {}: {unmounted:?}", path.display());
    }
}
