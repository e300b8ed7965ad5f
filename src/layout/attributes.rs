//! What a copy takes from its original besides the content: owner, group, mode, ACLs, time.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{
    self, AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::acl;
use super::dir::Dir;
use super::error::{At, Result};

/// What `rsync -aA` keeps of a file or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    acl: Option<Vec<u8>>,
    default_acl: Option<Vec<u8>>,
    modified: (i64, u64),
}

impl Attributes {
    /// Of an open file or directory and its status.
    pub fn of(file: impl AsFd, stat: &Stat, at: impl Fn() -> PathBuf) -> Result<Attributes> {
        let file = file.as_fd();
        let acl = acl::read(file, acl::ACCESS).at(&at)?;
        let default_acl = match fs::FileType::from_raw_mode(stat.st_mode) {
            fs::FileType::Directory => acl::read(file, acl::DEFAULT).at(&at)?,
            _ => None,
        };
        Ok(Attributes {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            acl,
            default_acl,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        })
    }

    /// Gives them to a file or directory; whether all could be given.
    ///
    /// Only root can give files away. Whoever cannot gives no more than the original does: where the
    /// group is another one, it and those whom the ACL names get what everybody gets.
    pub fn put_on(&self, file: impl AsFd, at: impl Fn() -> PathBuf) -> Result<bool> {
        let file = file.as_fd();
        let (owner, group) = self.give(file).at(&at)?;
        let mut whole = owner && group;
        if group {
            whole &= set_acl(file, acl::ACCESS, self.acl.as_deref()).at(&at)?;
            whole &= set_acl(file, acl::DEFAULT, self.default_acl.as_deref()).at(&at)?;
            fs::fchmod(file, Mode::from_raw_mode(self.mode)).at(&at)?;
        } else {
            set_acl(file, acl::ACCESS, None).at(&at)?;
            fs::fchmod(file, Mode::from_raw_mode(self.closed_to_group())).at(&at)?;
        }
        fs::futimens(file, &self.times()).at(&at)?;
        Ok(whole)
    }

    /// Whether the owner, and whether the group, are the original's now.
    fn give(&self, file: impl AsFd) -> std::result::Result<(bool, bool), Errno> {
        let file = file.as_fd();
        let now = fs::fstat(file)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let owner = match now.st_uid == self.uid {
            true => true,
            false => given(fs::fchown(file, Some(uid), None))?,
        };
        let group = match now.st_gid == self.gid {
            true => true,
            false => given(fs::fchown(file, None, Some(gid)))?,
        };
        Ok((owner, group))
    }

    /// Gives owner, group and time of a symlink's status to another symlink; whether all could be.
    pub fn put_on_symlink(dir: &Dir, name: &str, stat: &Stat) -> Result<bool> {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let chown = fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        let given = given(chown).at(|| dir.at(name))?;
        let times = times((stat.st_mtime, stat.st_mtime_nsec));
        fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).at(|| dir.at(name))?;
        Ok(given)
    }

    /// Whether a file with `other` may be what this account made of a file with these.
    pub fn may_be(&self, other: &Attributes) -> bool {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let owner = other.uid == self.uid || other.uid == uid.as_raw();
        let mut expected = Attributes { uid: other.uid, ..self.clone() };
        if other.gid != self.gid {
            expected.gid = gid.as_raw();
            (expected.mode, expected.acl) = (self.closed_to_group(), None);
        }
        owner && *other == expected
    }

    /// The mode of a copy whose group is another one.
    fn closed_to_group(&self) -> u32 {
        self.mode & 0o1707 | (self.mode & 0o7) << 3 & self.mode
    }

    fn times(&self) -> Timestamps {
        times(self.modified)
    }
}

/// Sets an ACL or takes it away; `false` where the file system keeps none.
fn set_acl(file: impl AsFd, name: &str, acl: Option<&[u8]>) -> std::result::Result<bool, Errno> {
    let done = match acl {
        Some(acl) => fs::fsetxattr(file, name, acl, XattrFlags::empty()),
        None => fs::fremovexattr(file, name),
    };
    match done {
        Ok(()) | Err(Errno::NODATA) => Ok(true),
        // Only a directory has a default one.
        Err(Errno::NOTSUP | Errno::ACCESS) if acl.is_none() => Ok(true),
        Err(Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn given(chown: std::result::Result<(), Errno>) -> std::result::Result<bool, Errno> {
    match chown {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

fn times((seconds, nanoseconds): (i64, u64)) -> Timestamps {
    // The kernel never gives more than fits.
    let nanoseconds = i64::try_from(nanoseconds).unwrap_or(0);
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}
