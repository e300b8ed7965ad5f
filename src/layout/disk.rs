//! The operations that make things durable, as one narrow trait.
//!
//! Whatever changes a tree goes through here, so that a test can record a push, leave steps out,
//! and open every state in which a crash could have left the files. Owners, modes and ACLs do not
//! pass: no crash rule depends on them.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{At, Result};
use super::write_back;

/// What the layout asks of a file system. Names are single components of the directory given.
pub trait Disk: Send + Sync + fmt::Debug {
    /// mkdir(2).
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> Result<()>;
    /// A new file for reading and writing; the name must be free.
    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> Result<File>;
    /// A new file without a name (O_TMPFILE), or an error where the file system has none.
    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> Result<File>;
    /// A file to append to and to read, made when it is missing; whether it was made.
    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> Result<(File, bool)>;
    /// Writes all of `bytes` at `offset`; a file opened for appending takes them at its end.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()>;
    /// May begin to bring what was written to the disk; promises nothing.
    fn begin_write_back(&self, _file: &File, _offset: u64, _len: u64) {}
    /// Writes all of some parts, one after the other, to an empty file.
    fn write_parts(&self, file: &File, parts: &[&[u8]]) -> std::io::Result<()> {
        match parts {
            [one] => self.write(file, one, 0),
            parts => self.write(file, &parts.concat(), 0),
        }
    }
    /// Cuts or extends a file, and gives back what was reserved past its end.
    fn set_len(&self, file: &File, len: u64) -> std::io::Result<()>;
    /// Makes `to` share the content of `from` (FICLONE), where the file system can.
    fn clone_content(&self, from: &File, to: &File) -> std::io::Result<()>;
    /// fsync(2) of a file. After a failure the file's content is unknown: throw it away.
    fn sync(&self, file: &File) -> std::io::Result<()>;
    /// fsync(2) of a directory: its names become durable.
    fn sync_dir(&self, dir: &Dir) -> Result<()>;
    /// rename(2), over whatever has the new name.
    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()>;
    /// renameat2(2) with RENAME_NOREPLACE: the new name must be free.
    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()>;
    /// link(2) of a name; the new name must be free.
    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()>;
    /// link(2) of an open file, named or not; the new name must be free.
    fn link_file(&self, file: &File, to: &Dir, new: &str) -> Result<()>;
    /// unlink(2).
    fn unlink(&self, dir: &Dir, name: &str) -> Result<()>;
    /// rmdir(2).
    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()>;
    /// symlink(2); the name must be free.
    fn symlink(&self, target: &CStr, dir: &Dir, name: &str) -> Result<()>;
    /// syncfs(2): whatever was done so far on the file system of `dir`, by whomever, becomes durable,
    /// names and content. An error may be about anybody's file.
    fn sync_all(&self, dir: &Dir) -> Result<()>;
}

/// The file system itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> Result<()> {
        fs::mkdirat(dir, name, mode).at(|| dir.at(name))
    }

    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> Result<File> {
        dir.create(name, OFlags::RDWR, mode)
    }

    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        fs::openat(dir, ".", flags, mode).map(File::from).at(|| dir.path().to_owned())
    }

    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> Result<(File, bool)> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NONBLOCK;
        loop {
            match dir.regular(name, flags, Mode::empty()) {
                Err(error) if error.is_absent() => {}
                opened => return opened.map(|file| (file, false)),
            }
            // What takes the name in between was not made here, and gets no rights from here.
            match dir.create(name, flags, mode) {
                Err(error) if error.errno() == Some(Errno::EXIST) => {}
                made => return made.map(|file| (file, true)),
            }
        }
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn begin_write_back(&self, file: &File, offset: u64, len: u64) {
        write_back::begin(file, offset, len);
    }

    fn write_parts(&self, mut file: &File, parts: &[&[u8]]) -> std::io::Result<()> {
        if let [one] = parts {
            return self.write(file, one, 0);
        }
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = slices.as_mut_slice();
        // What is empty would look like a file that takes nothing more.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> std::io::Result<()> {
        file.set_len(len)
    }

    fn clone_content(&self, from: &File, to: &File) -> std::io::Result<()> {
        fs::ioctl_ficlone(to, from).map_err(Into::into)
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        fs::fsync(dir).at(|| dir.path().to_owned())
    }

    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        fs::renameat(from, old, to, new).at(|| to.at(new))
    }

    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE).at(|| to.at(new))
    }

    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        fs::linkat(from, old, to, new, AtFlags::empty()).at(|| to.at(new))
    }

    fn link_file(&self, file: &File, to: &Dir, new: &str) -> Result<()> {
        // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH on kernels before 6.10.
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::linkat(fs::CWD, own, to, new, AtFlags::SYMLINK_FOLLOW).at(|| to.at(new))
    }

    fn unlink(&self, dir: &Dir, name: &str) -> Result<()> {
        fs::unlinkat(dir, name, AtFlags::empty()).at(|| dir.at(name))
    }

    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()> {
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR).at(|| dir.at(name))
    }

    fn symlink(&self, target: &CStr, dir: &Dir, name: &str) -> Result<()> {
        fs::symlinkat(target, dir, name).at(|| dir.at(name))
    }

    fn sync_all(&self, dir: &Dir) -> Result<()> {
        fs::syncfs(dir).at(|| dir.path().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Whoever may write the directory links somebody else's file under the name between the two
    /// opens: it was not made here, and gets no rights from here.
    #[test]
    fn what_takes_the_name_meanwhile_was_not_made_here() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let (name, victim) = (temp.path().join("log"), temp.path().join("victim"));
        std::fs::write(&victim, "").unwrap();
        let theirs = std::fs::metadata(&victim).unwrap().ino();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = std::fs::remove_file(&name);
                    let _ = std::fs::hard_link(&victim, &name);
                }
            });
            let (mut made, mut met) = (0, 0);
            while made < 2_000 || met < 2_000 {
                let opened = RealDisk.open_append(&dir, "log", Mode::RUSR | Mode::WUSR);
                let (file, is_new) = opened.unwrap();
                let own = file.metadata().unwrap().ino() != theirs;
                *(if is_new { &mut made } else { &mut met }) += 1;
                if is_new && !own {
                    done.store(true, Ordering::Relaxed);
                    panic!("somebody else's file counts as made here, after {made}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
