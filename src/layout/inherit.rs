//! What a repository's own files take from its directory: group, group-write and ACL.
//!
//! A group member's skopeo writes index.json in place; a replaced file that lost the group's
//! write bit would shut it out (PROTOCOL.md, "Locks").

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{self, Gid, Mode, Stat, XattrFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{At, Result};

/// The extended attribute in which Linux keeps a POSIX ACL.
const ACCESS_ACL: &str = "system.posix_acl_access";

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
    fn narrowed(self, directory: u16) -> u16 {
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
    let acl = read_acl(dir).at(path)?;
    match acl.as_deref().and_then(|acl| narrow(acl, purpose)) {
        Some(acl) => fs::fsetxattr(file, ACCESS_ACL, &acl, XattrFlags::empty()).at(path),
        None => {
            // A default ACL of the directory has given the file one that its mode does not show.
            strip_acl(file).at(path)?;
            let group = if stat.st_mode & 0o020 != 0 { 0o060 } else { 0 };
            fs::fchmod(file, Mode::from_raw_mode(purpose.base() | group)).at(path)
        }
    }
}

/// Removes an ACL, if there is one and the file system knows any.
pub fn strip_acl(file: impl AsFd) -> std::result::Result<(), Errno> {
    match fs::fremovexattr(file, ACCESS_ACL) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The ACL beyond the mode bits, if there is one.
pub fn read_acl(file: impl AsFd) -> std::result::Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0u8; 4 + 8 * 64];
    loop {
        match fs::fgetxattr(file.as_fd(), ACCESS_ACL, &mut buffer[..]) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(Some(buffer));
            }
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(error) => return Err(error),
        }
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

// An ACL's entry: tag, permissions, id (acl(5); include/uapi/linux/posix_acl_xattr.h).
const USER_OBJ: u16 = 0x01;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The directory's ACL as a file's: without search permission, and with what `purpose` allows.
/// `None` if it is not of the form that Linux has.
fn narrow(acl: &[u8], purpose: Purpose) -> Option<Vec<u8>> {
    let (version, entries) = acl.split_at_checked(4)?;
    if version != 2u32.to_le_bytes() || entries.len() % 8 != 0 {
        return None;
    }
    let mut narrowed = version.to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let bits = match tag {
            USER_OBJ => 0o6,
            MASK => bits & 0o6,
            OTHER if purpose == Purpose::Public => 0o4,
            OTHER => 0,
            _ => purpose.narrowed(bits),
        };
        narrowed.extend_from_slice(&tag.to_le_bytes());
        narrowed.extend_from_slice(&bits.to_le_bytes());
        narrowed.extend_from_slice(&entry[4..]);
    }
    Some(narrowed)
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
        let entry = |tag: u16, bits: u16, id: u32| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
        };
        let acl = [
            2u32.to_le_bytes().to_vec(),
            entry(USER_OBJ, 7, u32::MAX),
            entry(0x02, 7, 1000),
            entry(0x02, 5, 1001),
            entry(0x04, 5, u32::MAX),
            entry(MASK, 7, u32::MAX),
            entry(OTHER, 5, u32::MAX),
        ]
        .concat();
        let bits = |purpose| -> Vec<u8> {
            narrow(&acl, purpose).unwrap()[4..].chunks(8).map(|entry| entry[2]).collect()
        };
        assert_eq!(bits(Purpose::Lock), [6, 6, 0, 0, 6, 0]);
        assert_eq!(bits(Purpose::Public), [6, 6, 4, 4, 6, 4]);
        assert_eq!(narrow(b"x", Purpose::Lock), None);
    }
}
