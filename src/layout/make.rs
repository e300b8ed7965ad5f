//! How directories come into the tree: with their rights, or not at all.
//!
//! A directory of a repository is made under a hidden name, gets its group, mode and ACL, and is
//! then renamed. So nobody ever meets one that lacks a right or has one too many, at whatever
//! moment the server is killed; what may be left is an empty hidden directory.

use rustix::fs::{self, Gid, Mode, XattrFlags};
use rustix::io::Errno;

use super::account::{Account, READ, SEARCH, WRITE};
use super::acl::{self, Acl, AclEntry, AclTag};
use super::dir::{Dir, Inode};
use super::disk::Disk;
use super::error::{At, Error, OrAbsent, Result};
use super::rights::Level;
use super::{inherit, path};

/// Makes the directories of a repository's name that are missing, as mkdir(2) by `maker` with
/// umask 022 would make them, but that they belong to the server's account.
///
/// Nothing is synced here: the first commit syncs the whole chain.
///
/// # Errors
/// [`Error::NoAcls`] where the rights would shut out the maker and nothing can be done about it;
/// [`Error::Replaced`] where a directory is not the one that let the maker through.
pub(super) fn repository(disk: &dyn Disk, root: &Dir, name: &str, maker: &Account) -> Result<Dir> {
    let accept = |depth, dir: Dir| match maker.accepts_on_the_way(name, depth, &dir)? {
        true => Ok(dir),
        false => Err(Error::Replaced { path: dir.path().to_owned() }),
    };
    let root = accept(0, root.clone())?;
    name.split('/').zip(1..).try_fold(root, |parent, (name, depth)| {
        if let Some(found) = parent.dir(name).or_absent()? {
            return accept(depth, found);
        }
        let dress = Dress::new_repository(&parent, maker)?;
        match make(disk, &parent, name, &dress)? {
            (made, true) => Ok(made),
            (found, false) => accept(depth, found),
        }
    })
}

/// A directory inside a repository, made when it is missing, as open as the repository is: one that
/// differs is brought in line. Its name is not synced: that is for who relies on it.
pub(super) fn inner(disk: &dyn Disk, repo: &Dir, relative: &str) -> Result<Dir> {
    inside(disk, repo, relative, false)
}

/// The same, and its name is durable on return.
pub(super) fn inner_durable(disk: &dyn Disk, repo: &Dir, relative: &str) -> Result<Dir> {
    inside(disk, repo, relative, true)
}

fn inside(disk: &dyn Disk, repo: &Dir, relative: &str, durable: bool) -> Result<Dir> {
    let dress = Dress::like(repo)?;
    relative.split('/').try_fold(repo.clone(), |at, name| {
        if let Some(found) = at.dir(name).or_absent()? {
            match dress.put_on(&found) {
                // Somebody else's, made by another tool: `check` reports it where it is wider.
                Err(error) if error.errno() == Some(Errno::PERM) => {}
                done => done?,
            }
            return Ok(found);
        }
        let (made, is_new) = make(disk, &at, name, &dress)?;
        if is_new && durable {
            disk.sync_dir(&at)?;
        }
        Ok(made)
    })
}

/// Gives a directory inside a repository the rights of the repository.
///
/// # Errors
/// It is somebody else's: only its owner can do that.
pub(super) fn as_open_as(repo: &Dir, relative: &str) -> Result<()> {
    Dress::like(repo)?.put_on(&repo.dir(relative)?)
}

/// mkdir -p for the room, where nobody else may be.
pub(super) fn in_room(disk: &dyn Disk, parent: &Dir, relative: &str) -> Result<Dir> {
    if let Some(found) = parent.dir(relative).or_absent()? {
        return Ok(found);
    }
    relative.split('/').try_fold(parent.clone(), |at, name| {
        match disk.make_dir(&at, name, Mode::RWXU) {
            Err(error) if error.errno() == Some(Errno::EXIST) => at.dir(name),
            made => {
                made?;
                let dir = at.dir(name)?;
                // A default ACL of ROOT would let others in.
                inherit::strip_acl(&dir)
                    .and_then(|()| inherit::strip_default_acl(&dir))
                    .at(|| dir.path().to_owned())?;
                fs::fchmod(&dir, Mode::RWXU).at(|| dir.path().to_owned())?;
                Ok(dir)
            }
        }
    })
}

/// Makes a directory that appears with its rights; whether it was made by this.
fn make(disk: &dyn Disk, parent: &Dir, name: &str, dress: &Dress) -> Result<(Dir, bool)> {
    let beside = path::temporary("new");
    disk.make_dir(parent, &beside, dress.mode())?;
    let renamed = parent.dir(&beside).and_then(|dir| {
        dress.put_on(&dir)?;
        disk.rename_new(parent, &beside, parent, name)?;
        // Not opened by its name: somebody may have put another there.
        Ok(dir.called(&parent.at(name)))
    });
    let error = match renamed {
        Ok(made) => return Ok((made, true)),
        Err(error) => error,
    };
    // What failed may fail again here; the leftover is hidden and empty, and gc removes it.
    let _ = disk.remove_dir(parent, &beside);
    match error.errno() {
        Some(Errno::EXIST) => Ok((parent.dir(name)?, false)),
        // No such rename here (some network file systems).
        Some(Errno::INVAL | Errno::NOSYS) => make_in_place(disk, parent, name, dress),
        _ => Err(error),
    }
}

fn make_in_place(disk: &dyn Disk, parent: &Dir, name: &str, dress: &Dress) -> Result<(Dir, bool)> {
    match disk.make_dir(parent, name, dress.mode()) {
        Err(error) if error.errno() == Some(Errno::EXIST) => Ok((parent.dir(name)?, false)),
        Err(error) => Err(error),
        Ok(()) => {
            let dir = parent.dir(name)?;
            dress.put_on(&dir)?;
            Ok((dir, true))
        }
    }
}

/// The rights that a directory is to have.
#[derive(Debug)]
struct Dress {
    /// Its group; as the kernel chose it otherwise.
    gid: Option<u32>,
    set_gid: bool,
    /// The three entries of a mode, or more.
    acl: Acl,
    /// Whose entry was added, for messages.
    maker: Option<u32>,
}

impl Dress {
    /// Those of another directory.
    fn like(dir: &Dir) -> Result<Dress> {
        let level = Level::of(dir)?;
        let acl = level.acl.unwrap_or_else(|| of_mode(level.mode));
        Ok(Dress { gid: Some(level.gid), set_gid: level.mode & 0o2000 != 0, acl, maker: None })
    }

    /// Those of a new repository, or of a directory on the way to it.
    fn new_repository(parent: &Dir, maker: &Account) -> Result<Dress> {
        let above = Level::of(parent)?;
        let default = acl::read(parent, acl::DEFAULT).at(|| parent.path().to_owned())?;
        let default = default.as_deref().and_then(Acl::parse);
        let set_gid = above.mode & 0o2000 != 0;
        let acl = inherited(&above, default.as_ref());
        let mut dress = Dress { gid: None, set_gid, acl, maker: None };
        if let Some(uid) = maker.uid()
            && !maker.may(&dress.level(&above), READ | WRITE | SEARCH)
        {
            dress.acl = with_user(&dress.acl, uid);
            dress.maker = Some(uid);
        }
        Ok(dress)
    }

    /// The directory that will be made beneath `above`.
    fn level(&self, above: &Level) -> Level {
        let gid = if self.set_gid { above.gid } else { rustix::process::getegid().as_raw() };
        Level {
            path: above.path.clone(),
            inode: Inode { dev: 0, ino: 0 },
            uid: rustix::process::geteuid().as_raw(),
            gid,
            mode: self.bits(),
            acl: Some(self.acl.clone()),
        }
    }

    /// Permission bits and set-gid, as the mode shows them.
    fn bits(&self) -> u16 {
        let of = |tag| bits_of(&self.acl, tag).unwrap_or(0);
        let group = bits_of(&self.acl, AclTag::Mask).unwrap_or_else(|| of(AclTag::OwningGroup));
        let bits = of(AclTag::Owner) << 6 | group << 3 | of(AclTag::Other);
        bits | if self.set_gid { 0o2000 } else { 0 }
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(u32::from(self.bits() & 0o777))
    }

    /// Gives a directory the rights; touches nothing that is right already, because whoever is not
    /// in the group loses set-gid by it.
    fn put_on(&self, dir: &Dir) -> Result<()> {
        let at = || dir.path().to_owned();
        if let Some(gid) = self.gid.filter(|gid| dir.stat().is_ok_and(|stat| stat.st_gid != *gid)) {
            match fs::fchown(dir, None, Some(Gid::from_raw(gid))) {
                // An ordinary user may serve a directory of a group that it is not in.
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error).at(at),
            }
        }
        let wanted = self.acl.entries.iter().any(|entry| entry.tag == AclTag::Mask);
        let wanted = wanted.then(|| self.acl.to_bytes());
        let has = acl::read(dir, acl::ACCESS).at(at)?;
        match wanted {
            Some(acl) if has.as_ref() != Some(&acl) => {
                match fs::fsetxattr(dir, acl::ACCESS, &acl, XattrFlags::empty()) {
                    Err(Errno::NOTSUP) => return Err(Error::NoAcls { path: at() }),
                    // It is the attribute that has no room, not the disk.
                    Err(Errno::NOSPC) => {
                        return Err(Error::damaged(at(), "inherits more ACL entries than fit"));
                    }
                    set => set.at(at)?,
                }
            }
            None if has.is_some() => inherit::strip_acl(dir).at(at)?,
            _ => {}
        }
        if dir.stat()?.st_mode & 0o2777 != u32::from(self.bits()) {
            fs::fchmod(dir, Mode::from_raw_mode(self.bits().into())).at(at)?;
        }
        Ok(())
    }
}

/// What a directory inherits from the one above it, whoever makes it: the default ACL if there is
/// one; otherwise what umask 022 leaves, but under set-gid the group's bits as they are; and never
/// more for group and others than there, and no writing for others.
fn inherited(above: &Level, default: Option<&Acl>) -> Acl {
    let entry = |tag, bits| AclEntry { tag, bits };
    let Some(default) = default else {
        let acl = above.acl.clone().unwrap_or_else(|| of_mode(above.mode));
        let mask = bits_of(&acl, AclTag::Mask).unwrap_or(0o7);
        let group = bits_of(&acl, AclTag::OwningGroup).unwrap_or(0) & mask;
        let other = bits_of(&acl, AclTag::Other).unwrap_or(0);
        let group = if above.mode & 0o2000 != 0 { group } else { group & 0o5 };
        let [owner, group, other] =
            [(AclTag::Owner, 0o7), (AclTag::OwningGroup, group), (AclTag::Other, other & 0o5)]
                .map(|(tag, bits)| entry(tag, low(bits)));
        return Acl { entries: vec![owner, group, other] };
    };
    let narrowed = default.entries.iter().map(|found| match found.tag {
        // The owner is the server, whoever the default was meant for.
        AclTag::Owner => entry(found.tag, 0o7),
        AclTag::Other => entry(found.tag, found.bits & 0o5),
        _ => *found,
    });
    Acl { entries: narrowed.collect() }
}

/// The ACL with an entry that lets a user do everything. Nobody else gets more by the wider mask.
fn with_user(acl: &Acl, uid: u32) -> Acl {
    let mask = low(bits_of(acl, AclTag::Mask).unwrap_or(0o7));
    let others = acl
        .entries
        .iter()
        .filter(|entry| entry.tag != AclTag::Mask && entry.tag != AclTag::User(uid));
    let mut entries: Vec<AclEntry> = others
        .map(|entry| match entry.tag {
            AclTag::Owner | AclTag::Other | AclTag::Mask => *entry,
            tag => AclEntry { tag, bits: entry.bits & mask },
        })
        .collect();
    entries.push(AclEntry { tag: AclTag::User(uid), bits: 0o7 });
    entries.push(AclEntry { tag: AclTag::Mask, bits: 0o7 });
    entries.sort_by_key(|entry| entry.tag);
    Acl { entries }
}

/// A mode as an ACL.
fn of_mode(mode: u16) -> Acl {
    let entry = |tag, bits| AclEntry { tag, bits: low(bits) };
    let owner = entry(AclTag::Owner, mode >> 6);
    let group = entry(AclTag::OwningGroup, mode >> 3);
    Acl { entries: vec![owner, group, entry(AclTag::Other, mode)] }
}

fn low(bits: u16) -> u8 {
    (bits & 0o7) as u8
}

fn bits_of(acl: &Acl, tag: AclTag) -> Option<u16> {
    acl.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.bits.into())
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
