//! POSIX ACLs as Linux keeps them in an extended attribute.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs;
use rustix::io::Errno;

/// The extended attribute with a file's own ACL.
pub const ACCESS: &str = "system.posix_acl_access";
/// The one with what a directory gives to those made in it.
pub const DEFAULT: &str = "system.posix_acl_default";

/// Whom an entry of an ACL is about (acl(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AclTag {
    /// The file's owner.
    Owner,
    /// A user by number.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// A group by number.
    Group(u32),
    /// The most that [`User`](Self::User), [`OwningGroup`](Self::OwningGroup) and
    /// [`Group`](Self::Group) get.
    Mask,
    /// Everybody else.
    Other,
}

/// One entry of an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// Whom it is about.
    pub tag: AclTag,
    /// Read 4, write 2, search 1.
    pub bits: u8,
}

/// An ACL, in the order that the kernel keeps: owner, users, owning group, groups, mask, other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    /// Its entries.
    pub entries: Vec<AclEntry>,
}

// include/uapi/linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;

impl Acl {
    /// Reads the attribute's value; `None` if it is not of the form that Linux has.
    pub fn parse(bytes: &[u8]) -> Option<Acl> {
        let (version, entries) = bytes.split_at_checked(VERSION.len())?;
        if version != VERSION || entries.len() % ENTRY != 0 {
            return None;
        }
        let entries = entries.chunks_exact(ENTRY).map(AclEntry::parse).collect::<Option<_>>()?;
        Some(Acl { entries })
    }

    /// What a mode says.
    pub fn of_mode(mode: u32) -> Acl {
        let entry = |tag, shift: u32| AclEntry { tag, bits: (mode >> shift & 0o7) as u8 };
        let tags = [(AclTag::Owner, 6), (AclTag::OwningGroup, 3), (AclTag::Other, 0)];
        Acl { entries: tags.map(|(tag, shift)| entry(tag, shift)).to_vec() }
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for entry in &self.entries {
            let (tag, id) = entry.tag.to_raw();
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&u16::from(entry.bits).to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }
}

impl AclEntry {
    fn parse(bytes: &[u8]) -> Option<AclEntry> {
        let [tag0, tag1, bits, high, id @ ..] = bytes else { return None };
        let id = u32::from_le_bytes(id.try_into().ok()?);
        let tag = AclTag::from_raw(u16::from_le_bytes([*tag0, *tag1]), id)?;
        (*high == 0 && *bits <= 7).then_some(AclEntry { tag, bits: *bits })
    }
}

impl AclTag {
    fn from_raw(tag: u16, id: u32) -> Option<AclTag> {
        Some(match tag {
            0x01 => AclTag::Owner,
            0x02 => AclTag::User(id),
            0x04 => AclTag::OwningGroup,
            0x08 => AclTag::Group(id),
            0x10 => AclTag::Mask,
            0x20 => AclTag::Other,
            _ => return None,
        })
    }

    fn to_raw(self) -> (u16, u32) {
        match self {
            AclTag::Owner => (0x01, NO_ID),
            AclTag::User(id) => (0x02, id),
            AclTag::OwningGroup => (0x04, NO_ID),
            AclTag::Group(id) => (0x08, id),
            AclTag::Mask => (0x10, NO_ID),
            AclTag::Other => (0x20, NO_ID),
        }
    }
}

/// Whether a name right in an open directory has an ACL beyond its mode; it is not opened, and no
/// symlink is followed.
pub fn has_named(dir: impl AsFd, name: &str) -> bool {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd());
    fs::lgetxattr(path.as_str(), ACCESS, &mut [0u8; 0]).is_ok()
}

/// The value of the attribute `name` of a file or directory that may be open only as a path; `None`
/// if there is none, or the file system knows none. Needs no right to read the file.
pub fn read(file: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let file = file.as_fd();
    let get = |buffer: &mut [u8]| match fs::fgetxattr(file, name, &mut *buffer) {
        // Descriptors that are open only as a path are refused; the path to them is not.
        Err(Errno::BADF) => {
            fs::getxattr(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str(), name, buffer)
        }
        got => got,
    };
    let mut buffer = [0u8; VERSION.len() + ENTRY * 32];
    match get(&mut buffer) {
        Ok(len) => Ok(Some(buffer[..len].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(Errno::RANGE) => {
            // No attribute is longer than this (XATTR_SIZE_MAX).
            let mut buffer = vec![0u8; 1 << 16];
            let len = get(&mut buffer)?;
            buffer.truncate(len);
            Ok(Some(buffer))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_read_as_it_is_written() {
        let entry = |tag, bits| AclEntry { tag, bits };
        let acl = Acl {
            entries: vec![
                entry(AclTag::Owner, 7),
                entry(AclTag::User(1000), 6),
                entry(AclTag::OwningGroup, 5),
                entry(AclTag::Group(u32::MAX - 1), 4),
                entry(AclTag::Mask, 7),
                entry(AclTag::Other, 0),
            ],
        };
        let bytes = acl.to_bytes();
        assert_eq!(bytes.len(), 4 + 6 * 8);
        assert_eq!(Acl::parse(&bytes), Some(acl));
        for cut in [0, 3, 5, 11] {
            assert_eq!(Acl::parse(&bytes[..cut]), None, "{cut}");
        }
        for (at, wrong) in [(0, 1), (4, 3), (6, 8), (7, 1)] {
            let mut bytes = bytes.clone();
            bytes[at] = wrong;
            assert_eq!(Acl::parse(&bytes), None, "{at}");
        }
        assert_eq!(Acl::parse(&bytes[..4]), Some(Acl::default()));
    }
}
