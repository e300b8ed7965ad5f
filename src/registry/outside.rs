//! The tree as another program finds it: by paths from `/` on.

use std::sync::Arc;

use super::{OpenBlob, Registry, Result};
use crate::layout::rights::{Level, Rights, Way};
use crate::layout::{self, Dir, Error, Inode, path};
use crate::oci::{Digest, RepoName};

/// Looks at a tree from outside. What it remembers is checked at every look, as
/// [`Registry::way`] does.
#[derive(Debug)]
pub struct Outside {
    registry: Registry,
    top: Dir,
    /// The path of ROOT from `/`, without any symlink on the way.
    root: String,
    rights: Rights,
}

impl Outside {
    /// Of a registry's tree, where it lies now.
    ///
    /// # Errors
    /// Where that is cannot be found out, or cannot be spelled as UTF-8.
    pub fn of(registry: &Registry) -> Result<Outside> {
        let given = registry.inner.tree.root.path();
        let real = std::fs::canonicalize(given)
            .map_err(|error| Error::Io { path: given.to_owned(), source: Arc::new(error) })?;
        let Some(real) = real.to_str() else {
            return Err(Error::damaged(real, "is no path in UTF-8").into());
        };
        let root = real.trim_start_matches('/').to_owned();
        let top = Dir::open_root("/".as_ref())?;
        Ok(Outside { registry: registry.clone(), top, root, rights: Rights::default() })
    }

    /// The directories from `/` down to ROOT.
    pub fn way_to_root(&self) -> Result<Vec<Arc<Level>>> {
        Ok(self.look(&self.root)?.levels)
    }

    /// The directories that lead, from `/` on, to a blob that is open here; `None` where its path leads
    /// to another file or to none, or where somebody other than the server could change it.
    pub fn way_to_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        blob: &OpenBlob,
    ) -> Result<Option<Vec<Arc<Level>>>> {
        if !blob.is_sealed() {
            return Ok(None);
        }
        let above = format!("{}/{repo}/{}", self.root, path::blobs(digest.algorithm()));
        let way = self.look(above.trim_start_matches('/'))?;
        let stat = layout::stat_file(&blob.file, || above.clone().into())?;
        let same = way.whole && way.names(digest.hex(), Inode::of(&stat));
        Ok(same.then_some(way.levels))
    }

    fn look(&self, path: &str) -> Result<Way> {
        let remote = self.registry.inner.tree.is_remote();
        let look = || self.rights.beneath(&self.top, remote, path, false);
        Ok(if remote { tokio::task::block_in_place(look) } else { look() }?)
    }
}
