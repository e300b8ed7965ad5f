//! A file system whose power can be cut: in a file on a loop device, shut down by the kernel's own
//! ioctl, and mounted again as after a power cut.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use super::command::run;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4, as mkfs makes it.
    Ext4,
    /// XFS, likewise.
    Xfs,
}

/// A file system of its own; unmounted when dropped. Needs root.
pub struct Power {
    room: tempfile::TempDir,
    kind: Kind,
    /// How many images were left to those who keep a file system alive.
    copies: Cell<usize>,
}

impl Power {
    /// A new one, empty and mounted. The file that it lies in is in memory: nothing but the file
    /// system's own idea of what is durable counts here.
    pub fn new(kind: Kind) -> Power {
        let room = tempfile::Builder::new().prefix("stillage-power-").tempdir_in("/dev/shm");
        let room = room.expect("a temporary directory");
        let power = Power { room, kind, copies: Cell::new(0) };
        fs::create_dir(power.mount_point()).expect("the mount point");
        let image = File::create(power.image()).expect("the image");
        image.set_len(400 << 20).expect("its length");
        let mut mkfs = match kind {
            Kind::Ext4 => Command::new("mkfs.ext4"),
            Kind::Xfs => Command::new("mkfs.xfs"),
        };
        run(mkfs.arg("-q").arg(power.image())).ok();
        power.mount();
        power
    }

    fn image(&self) -> PathBuf {
        self.room.path().join(format!("image{}", self.copies.get()))
    }

    fn mount_point(&self) -> PathBuf {
        self.room.path().join("mount")
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        let options = match self.kind {
            Kind::Ext4 => "loop",
            // Who keeps the one before alive keeps its UUID too.
            Kind::Xfs => "loop,nouuid",
        };
        run(mount.args(["-o", options]).arg(self.image()).arg(self.mount_point())).ok();
    }

    /// A directory on it that is not there yet.
    pub fn root(&self) -> PathBuf {
        self.mount_point().join("registry")
    }

    /// What cuts the power, at once. Open this before it is needed.
    pub fn switch(&self) -> Switch {
        Switch(File::open(self.mount_point()).expect("the mount point"))
    }

    /// A program that another thread is just starting holds our descriptors until its exec: it is
    /// waited for.
    fn unmount(&self) {
        for _ in 0..500 {
            let done = run(Command::new("umount").arg(self.mount_point()));
            if done.code == Some(0) {
                return;
            }
            assert!(done.stderr.contains("busy"), "{done}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        run(Command::new("umount").arg(self.mount_point())).ok();
    }

    /// Mounts the file system again, from what had reached its disk. Nobody may hold a file of it.
    pub fn restore(&self) {
        self.unmount();
        let image = self.image();
        let device = run(Command::new("losetup").arg("-j").arg(&image)).ok().stdout;
        if !device.is_empty() {
            // A mount namespace that came into being meanwhile, a container's for instance, has the
            // file system mounted still: as it is, without power.
            self.copies.set(self.copies.get() + 1);
            run(Command::new("cp").arg("--sparse=always").arg(&image).arg(self.image())).ok();
            fs::remove_file(image).expect("the image");
        }
        self.mount();
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).status();
    }
}

/// Cuts the power.
pub struct Switch(File);

impl Switch {
    /// From here on nothing reaches the disk: not even what the file system has written to its log in
    /// memory.
    #[allow(unsafe_code, reason = "no crate has this ioctl")]
    pub fn cut(self) {
        use rustix::ioctl::{Setter, ioctl, opcode};
        const SHUTDOWN: u32 = opcode::read::<u32>(b'X', 125);
        const WITHOUT_FLUSHING_THE_LOG: u32 = 2;
        // SAFETY: FS_IOC_SHUTDOWN reads one u32 through the pointer that Setter gives it.
        let cut = unsafe { ioctl(&self.0, Setter::<SHUTDOWN, u32>::new(WITHOUT_FLUSHING_THE_LOG)) };
        cut.expect("the shutdown ioctl");
    }
}
