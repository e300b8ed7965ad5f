//! A walk over the repositories of a tree, in the order of their names, lazily.

use rustix::fs::FileType;

use super::dir::Dir;
use super::error::{OrAbsent, Result};
use super::path;
use crate::oci::RepoName;

/// Repositories after a given name, in the byte order of whole names. A directory is read only
/// when the walk comes to it, and the walk holds one list of names per level. It goes no deeper
/// than a repository's name reaches, and holds no directory but ROOT open on the way.
#[derive(Debug)]
pub struct Walk {
    root: Dir,
    last: Option<String>,
    levels: Vec<Level>,
    /// Every directory counts, whatever lies in it.
    all: bool,
}

/// A directory on the way: what is still to be visited in it, last first.
#[derive(Debug)]
struct Level {
    prefix: String,
    rest: Vec<Visit>,
}

/// A name is visited twice: as a repository, and for what lies beneath. `a-b` comes between the
/// two, for `-` sorts before `/`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Visit {
    Repository(String),
    Beneath(String),
}

impl Visit {
    fn key(&self) -> (&str, &str) {
        match self {
            Visit::Repository(name) => (name, ""),
            Visit::Beneath(name) => (name, "/"),
        }
    }
}

impl Walk {
    /// A walk over what comes after `last` beneath `root`.
    pub fn after(root: &Dir, last: Option<&str>) -> Result<Walk> {
        Walk::begin(root, last.map(str::to_owned), false)
    }

    /// A walk over all directories beneath `root` that a repository could be.
    pub fn directories(root: &Dir) -> Result<Walk> {
        Walk::begin(root, None, true)
    }

    fn begin(root: &Dir, last: Option<String>, all: bool) -> Result<Walk> {
        let mut walk = Walk { root: root.clone(), last, levels: Vec::new(), all };
        walk.enter(root, String::new())?;
        Ok(walk)
    }

    fn enter(&mut self, dir: &Dir, prefix: String) -> Result<()> {
        let mut rest = Vec::new();
        for (name, kind) in dir.names()? {
            // What cannot be a repository's name is not ours: lost+found, editors' files, and
            // whatever lies so deep that its name is too long.
            if kind != FileType::Directory || RepoName::parse(&format!("{prefix}{name}")).is_err() {
                continue;
            }
            let visits = [Visit::Repository(name.clone()), Visit::Beneath(name)];
            rest.extend(visits.into_iter().filter(|visit| self.wanted(&prefix, visit)));
        }
        let joined = |visit: &Visit| {
            let (name, slash) = visit.key();
            format!("{name}{slash}")
        };
        rest.sort_by_cached_key(|visit| std::cmp::Reverse(joined(visit)));
        self.levels.push(Level { prefix, rest });
        Ok(())
    }

    /// Whether anything of a visit can come after `last`.
    fn wanted(&self, prefix: &str, visit: &Visit) -> bool {
        let Some(last) = &self.last else { return true };
        match visit {
            Visit::Repository(name) => format!("{prefix}{name}") > *last,
            Visit::Beneath(name) => {
                let beneath = format!("{prefix}{name}/");
                beneath > *last || last.starts_with(&beneath)
            }
        }
    }

    fn step(&mut self) -> Result<Option<Option<(RepoName, Dir)>>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(None);
        };
        let Some(visit) = level.rest.pop() else {
            self.levels.pop();
            return Ok(Some(None));
        };
        match visit {
            Visit::Repository(name) => {
                let whole = format!("{}{name}", level.prefix);
                let Ok(repo) = RepoName::parse(&whole) else {
                    return Ok(Some(None));
                };
                let Some(dir) = self.root.dir(&whole).or_absent()? else {
                    return Ok(Some(None));
                };
                let found = self.all || dir.stat_name(path::INDEX)?.is_some();
                Ok(Some(found.then_some((repo, dir))))
            }
            Visit::Beneath(name) => {
                let whole = format!("{}{name}", level.prefix);
                if let Some(dir) = self.root.dir(&whole).or_absent()? {
                    self.enter(&dir, whole + "/")?;
                }
                Ok(Some(None))
            }
        }
    }
}

/// The directories that hold an index.json, or all. One that cannot be read is an error, after which
/// the walk goes on.
impl Iterator for Walk {
    type Item = Result<(RepoName, Dir)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step() {
                Ok(None) => return None,
                Ok(Some(None)) => {}
                Ok(Some(Some(found))) => return Some(Ok(found)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_their_order_from_anywhere() {
        let temp = tempfile::tempdir().unwrap();
        let mut names = ["a", "a-b", "a.b/c", "a/b", "a/b/c", "a/x-y", "a0", "b/c/d", "c"];
        for name in names {
            std::fs::create_dir_all(temp.path().join(name)).unwrap();
            std::fs::write(temp.path().join(name).join("index.json"), "").unwrap();
        }
        for foreign in ["lost+found", ".stillage/pool", "a/blobs/sha256", "_x", "empty"] {
            std::fs::create_dir_all(temp.path().join(foreign)).unwrap();
            let hidden = foreign != "empty";
            if hidden {
                std::fs::write(temp.path().join(foreign).join("index.json"), "").unwrap();
            }
        }
        names.sort_unstable();
        let root = Dir::open_root(temp.path()).unwrap();
        let walk = |last: Option<&str>| -> Vec<String> {
            let walk = Walk::after(&root, last).unwrap();
            walk.map(|found| found.unwrap().0.to_string()).collect()
        };
        assert_eq!(walk(None), names);
        let between = ["", "a", "a-", "a/", "a/b", "a/b/", "a/zzz", "a0", "b", "b/c/d", "c", "z"];
        for last in between {
            let expected: Vec<_> = names.iter().filter(|name| **name > last).collect();
            assert_eq!(walk(Some(last)).iter().collect::<Vec<_>>(), expected, "after {last:?}");
        }
        let all = Walk::directories(&root).unwrap();
        let all: Vec<_> = all.map(|found| found.unwrap().0.to_string()).collect();
        let mut expected = names.map(str::to_owned).to_vec();
        expected.extend(["a.b", "a/x-y", "b", "b/c", "empty"].map(str::to_owned));
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_walk_goes_no_deeper_than_names_reach() {
        let temp = tempfile::tempdir().unwrap();
        let deep = vec!["a"; 400].join("/");
        std::fs::create_dir_all(temp.path().join(&deep)).unwrap();
        // 128 components are 255 bytes, the longest name.
        for levels in [1, 128, 129, 400] {
            std::fs::write(temp.path().join(&deep[..2 * levels - 1]).join("index.json"), "")
                .unwrap();
        }
        let root = Dir::open_root(temp.path()).unwrap();
        let mut walk = Walk::after(&root, None).unwrap();
        let mut found = Vec::new();
        let mut deepest = 0;
        while let Some(step) = walk.step().unwrap() {
            deepest = deepest.max(walk.levels.len());
            found.extend(step.map(|(name, _)| name.as_str().len()));
        }
        assert_eq!(found, [1, 255]);
        assert_eq!(deepest, 129, "the last level is known to be too deep for any name");
    }
}
