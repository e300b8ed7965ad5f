//! Whoever changes a tree does it as the tree's owner: files that root made in a service account's
//! tree could neither be shared nor replaced by the server.

use std::error::Error;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use stillage::layout::path;

/// Takes on the uid, the gid and the groups of the account that `.stillage` belongs to, if that is
/// another one and this process is root's. Nobody else can: then opening the tree says what to do.
///
/// To be called before any thread is started and before anything of the tree is opened.
///
/// # Errors
/// There is no registry at `root`, or the system refuses.
pub(crate) fn become_owner(root: &Path) -> Result<(), Box<dyn Error>> {
    let room = root.join(path::ROOM);
    let owner = std::fs::symlink_metadata(&room).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{}: is no registry: `stillage serve` makes one", root.display())
        }
        _ => format!("{}: {error}", room.display()),
    })?;
    become_owner_of(&room, &owner)
}

/// The same, but that a tree without a room, as a copy is, belongs to the owner of ROOT.
pub(crate) fn become_keeper(root: &Path) -> Result<(), Box<dyn Error>> {
    if root.join(path::ROOM).symlink_metadata().is_ok() {
        return become_owner(root);
    }
    let owner = std::fs::metadata(root).map_err(|error| format!("{}: {error}", root.display()))?;
    become_owner_of(root, &owner)
}

fn become_owner_of(path: &Path, owner: &std::fs::Metadata) -> Result<(), Box<dyn Error>> {
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    if !geteuid().is_root() || uid.is_root() {
        return Ok(());
    }
    let refused =
        |error| format!("cannot become uid {uid}, the owner of {}: {error}", path.display());
    match User::from_uid(uid)? {
        // The groups of the account, as the server has them: they let it into directories.
        Some(user) => {
            let name = CString::new(user.name)?;
            initgroups(&name, gid).map_err(refused)?;
        }
        None => setgroups(&[gid]).map_err(refused)?,
    }
    setgid(gid).map_err(refused)?;
    setuid(uid).map_err(refused)?;
    Ok(())
}
