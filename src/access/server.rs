//! What the server's own account can see of a repository, and what it cannot.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use serde::Serialize;

use super::report::{Named, ReportError, named_user};
use super::{grant, permissions, words};
use crate::auth::{Names, READ, SEARCH, User, WRITE};
use crate::layout::rights::{Level, Way};
use crate::layout::{At, Dir, path};
use crate::oci::{Algorithm, RepoName};

/// The account that owns `.stillage`.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Its name and number.
    #[serde(flatten)]
    pub account: Named,
    /// What it cannot read or write of this repository.
    pub problems: Vec<Problem>,
}

/// Something that the server should be able to do.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// Where.
    pub path: String,
    /// What it lacks: `-w-`.
    pub lacks: String,
    /// The command that mends it.
    pub mend: String,
}

/// Who serves a tree: the owner of its room; `None` where it was never served.
pub(super) fn account(root: &Dir) -> Result<Option<User>, ReportError> {
    let Some(room) = root.stat_name(path::ROOM)? else { return Ok(None) };
    let uid = room.st_uid;
    let found = User::with_uid(uid).map_err(|error| ReportError::Untold(error.to_string()))?;
    // An account without a name, as containers have.
    let nameless = || User { name: uid.to_string(), uid, gid: uid, groups: vec![] };
    Ok(Some(found.unwrap_or_else(nameless)))
}

/// The way as the server's account sees it, from what somebody saw who sees as much or more.
pub(super) fn sees(server: &User, seen: Way) -> Way {
    let beneath = if seen.whole { seen.levels.len() - 1 } else { seen.levels.len() };
    let closed = seen.levels[..beneath].iter().position(|level| lacks(server, level, SEARCH) != 0);
    let Some(at) = closed else { return seen };
    let mut levels = seen.levels;
    levels.truncate(at + 1);
    let refused = Err::<(), Errno>(Errno::ACCESS).at(|| levels[at].path.clone());
    // Whether the mount takes writes is asked of the last level alone.
    Way { levels, whole: false, held: None, read_only: false, stopped: refused.err() }
}

/// What the server lacks, of the directories on the way and of what is in the repository.
pub(super) fn report(server: &User, root: &Dir, repo: &RepoName, seen: &Way) -> Server {
    let last = seen.levels.len() - 1;
    let above = seen.levels[..last].iter().map(|level| (&**level, READ | SEARCH));
    let own = (&*seen.levels[last], READ | WRITE | SEARCH);
    let mut problems: Vec<Problem> =
        above.chain([own]).filter_map(|(level, needs)| problem(server, level, needs)).collect();
    if seen.whole
        && let Ok(dir) = root.dir(repo.as_str())
    {
        let inside = inside(&dir);
        problems.extend(inside.iter().filter_map(|(level, needs)| problem(server, level, *needs)));
    }
    Server { account: named_user(server.uid), problems }
}

/// The first directory of a way that an account may not search.
pub fn first_closed(account: &User, way: &[Arc<Level>]) -> Option<PathBuf> {
    let closed = way.iter().find(|level| lacks(account, level, SEARCH) != 0);
    closed.map(|level| level.path.clone())
}

/// What the server uses of a repository, as far as it is there and can be looked at.
fn inside(repo: &Dir) -> Vec<(Level, u8)> {
    let files = [(path::INDEX, READ), (path::LOCK, READ | WRITE), (path::JOURNAL, READ | WRITE)];
    let files = files.into_iter().filter_map(|(name, needs)| {
        Level::of_file(repo, name).ok().flatten().map(|level| (level, needs))
    });
    let blobs = Algorithm::ALL.iter().map(|algorithm| path::blobs(*algorithm));
    let directories = [path::BLOBS.to_owned()].into_iter().chain(blobs).filter_map(|name| {
        let level = repo.dir(&name).and_then(|dir| Level::of(&dir)).ok()?;
        Some((level, READ | WRITE | SEARCH))
    });
    files.chain(directories).collect()
}

fn problem(server: &User, level: &Level, needs: u8) -> Option<Problem> {
    let lacks = lacks(server, level, needs);
    (lacks != 0).then(|| Problem {
        path: level.path.display().to_string(),
        lacks: words::letters(lacks),
        mend: grant::for_user(Names::Service, level, server.uid, needs),
    })
}

fn lacks(server: &User, level: &Level, needs: u8) -> u8 {
    let found = permissions(level);
    let who = crate::auth::Credentials { uid: Some(server.uid), groups: &server.groups };
    let given = |bit: &u8| server.uid == 0 || found.rule(who, *bit).allowed;
    let missing = [READ, WRITE, SEARCH].into_iter().filter(|bit| needs & bit != 0 && !given(bit));
    missing.fold(0, |all, bit| all | bit)
}
