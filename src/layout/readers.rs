//! Who may read a file besides the server.
//!
//! What protects a blob that the server wrote is the directories above it. A file that somebody
//! with a shell put there has rights of its own, and may be one more name of a file that its
//! planter could not read: the server, which can, must not read it out to him.

use std::fs::File;
use std::path::Path;

use rustix::fs::Stat;

use super::account::{Account, READ};
use super::acl::{self, Acl};
use super::dir::Inode;
use super::error::{At, Error, Result};
use super::rights::Level;

/// Who may read a file, by its own owner, mode and ACL. Who may come to it is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Whoever comes to it.
    Everybody,
    /// Those whom these rights let.
    Of(Box<Level>),
}

impl Readers {
    /// Of an open file, now. A file of the server's own account that everybody may read costs no
    /// second look: nobody else could have given it an ACL.
    pub fn of(file: &File, stat: &Stat, path: &Path) -> Result<Readers> {
        let at = || path.to_owned();
        let open = stat.st_mode & 0o444 == 0o444;
        if open && stat.st_uid == rustix::process::geteuid().as_raw() {
            return Ok(Readers::Everybody);
        }
        let acl = match acl::read(file, acl::ACCESS).at(at)? {
            None if open => return Ok(Readers::Everybody),
            None => None,
            Some(bytes) => Some(Acl::parse(&bytes).ok_or_else(|| Error::unreadable_acl(path))?),
        };
        let mode = u16::try_from(stat.st_mode & 0o7777).unwrap_or(0);
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        let level = Level { path: at(), inode: Inode::of(stat), uid, gid, mode, acl };
        Ok(Readers::Of(Box::new(level)))
    }

    /// Whether an account is one of them.
    pub fn include(&self, account: &Account) -> bool {
        match self {
            Readers::Everybody => true,
            Readers::Of(level) => account.may(level, READ),
        }
    }
}

/// The administrator may wonder why a file that is there is not served.
pub fn passed_over(path: &Path) {
    tracing::info!(?path, "its own owner, mode and ACL do not let the requester read this file");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_file_has_rights_of_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let file = File::create(&path).unwrap();
        let of = |mode| {
            file.set_permissions(PermissionsExt::from_mode(mode)).unwrap();
            Readers::of(&file, &rustix::fs::fstat(&file).unwrap(), &path).unwrap()
        };
        let nobody = Account::new(None, |_, _| false);
        for mode in [0o444, 0o644, 0o666] {
            assert!(of(mode).include(&nobody), "{mode:o}");
        }
        let other = Account::new(None, |level, bits| level.mode & u16::from(bits) != 0);
        for mode in [0o400, 0o600, 0o640, 0o440, 0o604] {
            let readers = of(mode);
            assert!(!readers.include(&nobody), "{mode:o}");
            assert_eq!(readers.include(&other), mode & 0o004 != 0, "{mode:o}");
            assert!(readers.include(&Account::default()));
        }
    }

    #[test]
    fn the_acl_of_somebody_elses_file_counts() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let file = File::create(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(4711), Some(4711)).unwrap();
        let of = || Readers::of(&file, &rustix::fs::fstat(&file).unwrap(), &path).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(of(), Readers::Everybody);
        let acl = Command::new("setfacl").args(["-m", "u:4712:---"]).arg(&path).status();
        assert!(acl.expect("setfacl is installed").success());
        let Readers::Of(level) = of() else { panic!("the ACL was not read") };
        assert_eq!((level.uid, level.gid, level.mode), (4711, 4711, 0o644));
        assert_eq!(level.acl.unwrap().entries.len(), 5);
    }
}
