//! An account of the host: its name and what the kernel would call its credentials.

use std::ffi::CString;

use nix::errno::Errno;
use nix::unistd;

/// An account as the name service (files, LDAP, sssd) gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The account's name, as the name service spells it.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// All its groups, the primary one included.
    pub groups: Vec<u32>,
}

/// The name service did not answer; whether the user exists is not known.
#[derive(Debug, thiserror::Error)]
#[error("the name service failed for user {name:?}: {source}")]
pub struct NameServiceError {
    name: String,
    source: Errno,
}

impl User {
    /// Asks the name service; `None` if it knows no such user. May block, as LDAP does, and runs
    /// the host's NSS modules, so of a server only its worker processes call it.
    pub fn find(name: &str) -> Result<Option<User>, NameServiceError> {
        let failed = |source| NameServiceError { name: name.to_owned(), source };
        let entry = match unistd::User::from_name(name) {
            Ok(Some(entry)) => entry,
            Ok(None) | Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        // The entry's own spelling: some services match names without regard to case.
        let Ok(c_name) = CString::new(entry.name.as_bytes()) else {
            return Ok(None);
        };
        let groups = unistd::getgrouplist(&c_name, entry.gid).map_err(failed)?;
        Ok(Some(User {
            name: entry.name,
            uid: entry.uid.as_raw(),
            gid: entry.gid.as_raw(),
            groups: groups.into_iter().map(unistd::Gid::as_raw).collect(),
        }))
    }

    /// The account with a number, as [`User::find`] gives it.
    pub fn with_uid(uid: u32) -> Result<Option<User>, NameServiceError> {
        match unistd::User::from_uid(unistd::Uid::from_raw(uid)) {
            Ok(Some(entry)) => User::find(&entry.name),
            Ok(None) | Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            Err(source) => Err(NameServiceError { name: uid.to_string(), source }),
        }
    }

    /// The account that this process runs as, with the groups that it really has. An account
    /// without a name, as containers have, is called by its number.
    pub(super) fn of_this_process() -> User {
        let (uid, gid) = (unistd::geteuid(), unistd::getegid());
        let name = match unistd::User::from_uid(uid) {
            Ok(Some(entry)) => entry.name,
            Ok(None) | Err(_) => uid.to_string(),
        };
        let mut groups: Vec<u32> =
            unistd::getgroups().unwrap_or_default().into_iter().map(unistd::Gid::as_raw).collect();
        if !groups.contains(&gid.as_raw()) {
            groups.push(gid.as_raw());
        }
        User { name, uid: uid.as_raw(), gid: gid.as_raw(), groups }
    }
}
