//! What a repository's own files take from its directory: group, group-write and ACL.
//!
//! A group member's skopeo writes index.json in place; a replaced file that lost the group's
//! write bit would shut it out (PROTOCOL.md, "Locks").

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{self, Gid, Mode, Stat, XattrFlags};
use rustix::io::Errno;

use super::acl::{self, Acl, AclEntry, AclTag};
use super::dir::Dir;
use super::error::{At, Result};

/// Which of a repository's files is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// index.json, oci-layout and what is derived: read by whoever may enter the directory.
    Public,
    /// The journal: for the owner and the group.
    Journal,
    /// The lock file: only who may push may open it, or a reader could hold it for ever.
    Lock,
}

impl Purpose {
    /// The mode before the group's write bit.
    fn base(self) -> u32 {
        match self {
            Purpose::Public => 0o644,
            Purpose::Journal => 0o640,
            Purpose::Lock => 0o600,
        }
    }

    /// The permission bits (rw only) that somebody gets who has `directory` bits on the directory.
    fn narrowed(self, directory: u8) -> u8 {
        let writes = directory & 0o2 != 0;
        match self {
            _ if writes => 0o6,
            Purpose::Lock => 0,
            Purpose::Public | Purpose::Journal => directory & 0o4,
        }
    }
}

/// Gives a new file in `dir` the group, group-write and ACL of the directory.
pub fn apply(dir: &Dir, file: &File, purpose: Purpose) -> Result<()> {
    let path = || dir.path().to_owned();
    let stat = dir.stat()?;
    take_group(file, &stat).at(path)?;
    let acl = acl::read(dir, acl::ACCESS).at(path)?;
    match acl.as_deref().and_then(Acl::parse) {
        Some(acl) => {
            let acl = narrow(&acl, purpose).to_bytes();
            fs::fsetxattr(file, acl::ACCESS, &acl, XattrFlags::empty()).at(path)
        }
        None => {
            // A default ACL of the directory has given the file one that its mode does not show.
            strip_acl(file).at(path)?;
            let group = if stat.st_mode & 0o020 != 0 { 0o060 } else { 0 };
            fs::fchmod(file, Mode::from_raw_mode(purpose.base() | group)).at(path)
        }
    }
}

/// Takes from a file in `dir` whatever [`apply`] would not give; whether there was anything. Nothing
/// is added and the group stays: the file may be another than was meant.
pub fn narrow_only(dir: &Dir, file: &File, purpose: Purpose) -> Result<bool> {
    let path = || dir.path().to_owned();
    let (outer, stat) = (dir.stat()?, fs::fstat(file).at(path)?);
    let given = match acl::read(dir, acl::ACCESS).at(path)?.as_deref().and_then(Acl::parse) {
        Some(acl) => narrow(&acl, purpose),
        None => {
            let group = if outer.st_mode & 0o020 != 0 { 0o060 } else { 0 };
            Acl::of_mode(purpose.base() | group)
        }
    };
    let of = |tag| given.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.bits);
    let mask = of(AclTag::Mask).unwrap_or(0o6);
    let allowed = |tag: AclTag| match tag {
        // To another group than the directory's nothing is given.
        AclTag::OwningGroup if stat.st_gid != outer.st_gid => 0,
        AclTag::Mask => 0o6,
        AclTag::Owner | AclTag::Other => of(tag).unwrap_or(0),
        AclTag::User(_) | AclTag::OwningGroup | AclTag::Group(_) => of(tag).unwrap_or(0) & mask,
    };
    match acl::read(file, acl::ACCESS).at(path)?.as_deref().and_then(Acl::parse) {
        Some(acl) => {
            let bits = |entry: &AclEntry| entry.bits & allowed(entry.tag);
            let entries = acl.entries.iter().map(|entry| AclEntry { bits: bits(entry), ..*entry });
            let less = Acl { entries: entries.collect() };
            if less == acl {
                return Ok(false);
            }
            fs::fsetxattr(file, acl::ACCESS, &less.to_bytes(), XattrFlags::empty()).at(path)?;
        }
        None => {
            let bits = |tag| u32::from(allowed(tag));
            let all = bits(AclTag::Owner) << 6 | bits(AclTag::OwningGroup) << 3;
            let less = stat.st_mode & 0o7777 & (all | bits(AclTag::Other));
            if less == stat.st_mode & 0o7777 {
                return Ok(false);
            }
            fs::fchmod(file, Mode::from_raw_mode(less)).at(path)?;
        }
    }
    Ok(true)
}

/// Removes an ACL, if there is one and the file system knows any.
pub fn strip_acl(file: impl AsFd) -> std::result::Result<(), Errno> {
    strip(file, acl::ACCESS)
}

/// Removes what a directory gives to those made in it, likewise.
pub fn strip_default_acl(dir: impl AsFd) -> std::result::Result<(), Errno> {
    strip(dir, acl::DEFAULT)
}

fn strip(file: impl AsFd, name: &str) -> std::result::Result<(), Errno> {
    match fs::fremovexattr(file, name) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error),
    }
}

fn take_group(file: impl AsFd, directory: &Stat) -> std::result::Result<(), Errno> {
    let file = file.as_fd();
    if fs::fstat(file)?.st_gid == directory.st_gid {
        return Ok(());
    }
    match fs::fchown(file, None, Some(Gid::from_raw(directory.st_gid))) {
        // An ordinary user may serve a directory of a group that it is not in.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory's ACL as a file's: without search permission, and with what `purpose` allows.
fn narrow(acl: &Acl, purpose: Purpose) -> Acl {
    let bits = |entry: &AclEntry| match entry.tag {
        AclTag::Owner => 0o6,
        AclTag::Mask => entry.bits & 0o6,
        AclTag::Other if purpose == Purpose::Public => 0o4,
        AclTag::Other => 0,
        AclTag::User(_) | AclTag::OwningGroup | AclTag::Group(_) => purpose.narrowed(entry.bits),
    };
    let entries = acl.entries.iter().map(|entry| AclEntry { bits: bits(entry), ..*entry });
    Acl { entries: entries.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(file: &File) -> u32 {
        fs::fstat(file).unwrap().st_mode & 0o7777
    }

    #[test]
    fn files_follow_the_group_bits_of_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let file = File::create(temp.path().join("f")).unwrap();
        let cases = [
            (0o755, Purpose::Public, 0o644),
            (0o2775, Purpose::Public, 0o664),
            (0o755, Purpose::Lock, 0o600),
            (0o775, Purpose::Lock, 0o660),
            (0o750, Purpose::Journal, 0o640),
            (0o770, Purpose::Journal, 0o660),
        ];
        for (directory, purpose, expected) in cases {
            fs::fchmod(&dir, Mode::from_raw_mode(directory)).unwrap();
            apply(&dir, &file, purpose).unwrap();
            assert_eq!(mode_of(&file), expected, "{directory:o} {purpose:?}");
        }
    }

    #[test]
    fn an_acl_gives_the_lock_to_those_who_may_write_only() {
        let entry = |tag, bits| AclEntry { tag, bits };
        let acl = Acl {
            entries: vec![
                entry(AclTag::Owner, 7),
                entry(AclTag::User(1000), 7),
                entry(AclTag::User(1001), 5),
                entry(AclTag::OwningGroup, 5),
                entry(AclTag::Mask, 7),
                entry(AclTag::Other, 5),
            ],
        };
        let bits = |purpose| -> Vec<u8> {
            narrow(&acl, purpose).entries.iter().map(|entry| entry.bits).collect()
        };
        assert_eq!(bits(Purpose::Lock), [6, 6, 0, 0, 6, 0]);
        assert_eq!(bits(Purpose::Public), [6, 6, 4, 4, 6, 4]);
    }
}
