//! Where else in the tree content lies that a repository lost.

use rustix::fs::FileType;

use super::{Mender, Work, there};
use crate::layout::holders::Holders;
use crate::layout::readers::Readers;
use crate::layout::relink::Source;
use crate::layout::{self, At as _, Dir, Inode, OrAbsent, Tree, path};
use crate::oci::Digest;

impl Work<'_> {
    /// Looks for sound content elsewhere: in the pool, in the repositories that were given it, in
    /// all others, in the trash. Gives it open, and where it was found. `not` is an inode that was
    /// found wanting.
    ///
    /// Nothing is given to a repository into which somebody but the owner could have put the
    /// reference, unless the server gave it that content before, and it is the same repository
    /// still: who knows a digest must not get what has it.
    pub(super) fn find(
        &mut self,
        repo: &Dir,
        digest: &Digest,
        not: Option<Inode>,
    ) -> layout::Result<Option<(Source, String)>> {
        let root = self.mender.root.clone();
        let tree = match root.dir(path::ROOM).or_absent()? {
            Some(room) => {
                let disk = std::sync::Arc::clone(&self.mender.repairs.disk);
                Some(Tree::for_repair(root.clone(), room, disk)?)
            }
            None => None,
        };
        let given: Vec<String> = match &tree {
            Some(tree) => {
                let names = Holders::default().of(tree, digest).unwrap_or_default();
                names.iter().map(ToString::to_string).collect()
            }
            None => Vec::new(),
        };
        let hinted = given.iter().any(|name| name == self.repository);
        let (places, looked) = self.mender.places();
        let believed = hinted && is_name_kept(&root, self.repository, repo)?;
        if !believed && !is_owners_alone(repo)? {
            return Ok(None);
        }
        // One that cannot be looked at now is not one that is not there.
        let mut trouble = looked.map(|()| None);
        let mut sound = |name: &str, pooled| {
            self.sound(&root, name, digest, not, pooled).unwrap_or_else(|error| {
                trouble = Err(error);
                None
            })
        };
        if tree.is_some() {
            let pooled = format!("{}/{}", path::ROOM, path::pool(digest));
            if let Some(found) = sound(&pooled, true) {
                return Ok(Some((found, "the pool".to_owned())));
            }
        }
        for place in given.into_iter().chain(places) {
            let name = match place.as_str() {
                "" => path::blob(digest),
                _ => format!("{place}/{}", path::blob(digest)),
            };
            if let Some(found) = sound(&name, false) {
                return Ok(Some((found, place)));
            }
        }
        trouble
    }

    /// A file, if it has the digest and everybody may read it who comes to it.
    fn sound(
        &self,
        root: &Dir,
        name: &str,
        digest: &Digest,
        not: Option<Inode>,
        pooled: bool,
    ) -> layout::Result<Option<Source>> {
        let Some((file, stat)) = there(root.file_stat(name))? else { return Ok(None) };
        let ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o222 == 0;
        let readers = there(Readers::of(&file, &stat, &root.at(name)))?;
        if not == Some(Inode::of(&stat)) || readers != Some(Readers::Everybody) || pooled && !ours {
            return Ok(None);
        }
        let found = self.hashes.digest(&file, &stat, digest.algorithm()).at(|| root.at(name))?;
        Ok((found == *digest).then_some(Source { file, stat }))
    }
}

/// Whether a repository's name can only be given by this account: no directory from ROOT down to its
/// parent may be written by anybody else. A hint is about a name, and whoever may write the directory
/// above moves one repository away and another into its place. That is so in a sticky one, too, once
/// the repository was deleted.
fn is_name_kept(root: &Dir, name: &str, repo: &Dir) -> layout::Result<bool> {
    if !is_alone(&root.stat()?) {
        return Ok(false);
    }
    for (end, _) in name.match_indices('/') {
        match root.dir(&name[..end]).or_absent()? {
            Some(above) if is_alone(&above.stat()?) => {}
            _ => return Ok(false),
        }
    }
    let named = root.dir(name).or_absent()?;
    Ok(named.map(|named| named.inode()).transpose()? == Some(repo.inode()?))
}

/// Whether only this account may write. With an ACL the group's bits are the mask of all whom it
/// names.
fn is_alone(stat: &rustix::fs::Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

/// Whether nobody but this account may write to the directories that name a repository's content.
fn is_owners_alone(repo: &Dir) -> layout::Result<bool> {
    let mut dirs = vec![repo.clone()];
    for name in [path::BLOBS, "blobs/sha256", "blobs/sha512"] {
        dirs.extend(repo.dir(name).or_absent()?);
    }
    for dir in dirs {
        if !is_alone(&dir.stat()?) {
            return Ok(false);
        }
    }
    Ok(repo.stat_name(path::INDEX)?.is_none_or(|stat| is_alone(&stat)))
}

impl Mender {
    /// The directories that have `blobs/`, in the tree and in its trash; and what went wrong where some
    /// could not be looked at.
    fn places(&mut self) -> (Vec<String>, layout::Result<()>) {
        if let Some(places) = &self.places {
            return (places.clone(), Ok(()));
        }
        let (mut found, mut looked) = (Vec::new(), Ok(()));
        gather(&self.root, "", &mut found, &mut looked);
        let trash = format!("{}/{}", path::ROOM, path::TRASH);
        match there(self.root.dir(&trash)) {
            Ok(Some(dir)) => gather(&dir, &trash, &mut found, &mut looked),
            Ok(None) => {}
            Err(error) => looked = Err(error),
        }
        if looked.is_ok() {
            self.places = Some(found.clone());
        }
        (found, looked)
    }
}

fn gather(dir: &Dir, name: &str, found: &mut Vec<String>, looked: &mut layout::Result<()>) {
    let mut children = Vec::new();
    let read = dir.each_name(|child, kind| {
        if kind == FileType::Directory && !child.starts_with(['.', '_']) {
            children.push(child.to_owned());
        }
    });
    match there(read) {
        Ok(Some(())) => {}
        Ok(None) => return,
        Err(error) => return *looked = Err(error),
    }
    children.sort_unstable();
    if children.iter().any(|child| child == path::BLOBS) {
        found.push(name.to_owned());
    }
    for child in children.iter().filter(|child| *child != path::BLOBS) {
        let whole = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
        match there(dir.dir(child)) {
            Ok(Some(dir)) => gather(&dir, &whole, found, looked),
            Ok(None) => {}
            Err(error) => *looked = Err(error),
        }
    }
}
