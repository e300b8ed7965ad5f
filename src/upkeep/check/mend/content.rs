//! Where else in the tree content lies that a repository lost.

use std::sync::Arc;

use rustix::fs::FileType;

use super::{Mender, Work, there};
use crate::layout::holders::Holders;
use crate::layout::readers::Readers;
use crate::layout::relink::Source;
use crate::layout::{self, At as _, Dir, Inode, OrAbsent, Tree, path};
use crate::oci::{Digest, RepoName};

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
                let disk = Arc::clone(&self.mender.repairs.disk);
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
        let believed = hinted && is_name_kept(&root, self.repository, repo)?;
        if !believed && !is_owners_alone(repo)? {
            return Ok(None);
        }
        // One that cannot be looked at now is not one that is not there.
        let mut trouble = Ok(None);
        if tree.is_some() {
            let pooled = format!("{}/{}", path::ROOM, path::pool(digest));
            match self.sound(&root, &pooled, digest, not, true) {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(Some((found, "the pool".to_owned()))),
                Err(error) => trouble = Err(error),
            }
        }
        let (places, looked) = self.mender.places();
        for place in given.iter().chain(&*places) {
            let name = match place.as_str() {
                "" => path::blob(digest),
                _ => format!("{place}/{}", path::blob(digest)),
            };
            match self.sound(&root, &name, digest, not, false) {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(Some((found, place.clone()))),
                Err(error) => trouble = Err(error),
            }
        }
        looked.and(trouble)
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
    fn places(&mut self) -> (Arc<[String]>, layout::Result<()>) {
        if let Some(places) = &self.places {
            return (Arc::clone(places), Ok(()));
        }
        let mut places = Places { found: Vec::new(), looked: Ok(()) };
        places.gather(&self.root, "", "");
        places.trash(&self.root);
        let found: Arc<[String]> = places.found.into();
        if places.looked.is_ok() {
            self.places = Some(Arc::clone(&found));
        }
        (found, places.looked)
    }
}

struct Places {
    found: Vec<String>,
    /// The last that could not be looked at.
    looked: layout::Result<()>,
}

impl Places {
    /// What of it is there.
    fn seen<T>(&mut self, looked: layout::Result<T>) -> Option<T> {
        there(looked).unwrap_or_else(|error| {
            self.looked = Err(error);
            None
        })
    }

    fn trash(&mut self, root: &Dir) {
        let trash = format!("{}/{}", path::ROOM, path::TRASH);
        let Some(dir) = self.seen(root.dir(&trash)) else { return };
        for hour in self.directories(&dir) {
            if let Some(dir) = self.seen(dir.dir(&hour)) {
                self.gather(&dir, &format!("{trash}/{hour}/"), "");
            }
        }
    }

    /// Goes to a directory and to all repositories beneath it. No deeper: others may nest directories
    /// until no descriptor is left. `above` is what stands before the repository's name.
    fn gather(&mut self, dir: &Dir, above: &str, name: &str) {
        let children = self.directories(dir);
        if children.iter().any(|child| child == path::BLOBS) {
            self.found.push(format!("{above}{name}").trim_end_matches('/').to_owned());
        }
        for child in children {
            let whole = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
            if RepoName::parse(&whole).is_ok()
                && let Some(dir) = self.seen(dir.dir(&child))
            {
                self.gather(&dir, above, &whole);
            }
        }
    }

    fn directories(&mut self, dir: &Dir) -> Vec<String> {
        let mut names = Vec::new();
        let read = dir.each_name(|name, kind| {
            if kind == FileType::Directory {
                names.push(name.to_owned());
            }
        });
        if self.seen(read).is_none() {
            return Vec::new();
        }
        names.sort_unstable();
        names
    }
}
