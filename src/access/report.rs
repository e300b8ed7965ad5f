//! `stillage access`: who may do what to one repository, and what decides it.
//!
//! Looks at the tree as it is, beside a running server or without one, and makes nothing in it. The
//! report is plain values, which are the JSON document as they stand (docs/access.md) and text for
//! people.

use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::Group;
use rustix::io::Errno;
use serde::Serialize;
use thiserror::Error;

use super::server::{self, Server};
use super::words::{self, Case};
use super::{grant, people, permissions, way};
use crate::auth::{
    Action, Anonymous, Judgement, Names, Permissions, Policy, READ, Reason, Right, SEARCH, User,
    WRITE, Who, judge,
};
use crate::layout::rights::{Rights, Way};
use crate::layout::{self, Dir, path};
use crate::oci::RepoName;

/// What is asked.
#[derive(Debug)]
pub struct Question {
    /// The registry's directory.
    pub root: PathBuf,
    /// The repository, there or not.
    pub repo: RepoName,
    /// An account's name, or [`ANONYMOUS`]; everybody if none is named.
    pub user: Option<String>,
    /// The server's `--admin-group`.
    pub admin_group: Option<String>,
    /// The server's `--anonymous`.
    pub anonymous: Anonymous,
}

/// What whoever does not log in is called.
pub const ANONYMOUS: &str = "anonymous";

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The tree cannot be looked at.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// There is no such account.
    #[error("this host has no user {0:?}")]
    NoUser(String),
    /// There is no such group.
    #[error("--admin-group {0:?}: this host has no such group")]
    NoGroup(String),
    /// The name service failed.
    #[error("{0}")]
    Untold(String),
    /// Whoever runs the command sees less than the server.
    #[error("{source}: run this as root, or as the server's account")]
    Blind {
        /// Where it ended.
        source: layout::Error,
    },
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Report {
    /// ROOT as it was given.
    pub root: String,
    /// The repository's name.
    pub repository: String,
    /// Its directory.
    pub path: String,
    /// What is there.
    pub state: State,
    /// Nobody can write to the last level.
    pub read_only: bool,
    /// What is allowed without a login: `pull` or `none`.
    pub anonymous: &'static str,
    /// The group whose members may do everything.
    pub admin_group: Option<Named>,
    /// The account that owns `.stillage`, and what it cannot do; null where nothing was served yet.
    pub server: Option<Server>,
    /// From ROOT to the deepest directory that is there.
    pub levels: Vec<LevelRow>,
    /// Whom the answers are about, if somebody was named.
    pub user: Option<Subject>,
    /// What they may do.
    pub answers: Option<Answers>,
    /// Everybody that a directory on the way names, if nobody was.
    pub who: Option<Vec<people::Principal>>,
}

/// What is at the repository's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A repository.
    Repository,
    /// A directory, which is no repository yet.
    Directory,
    /// Nothing.
    Absent,
    /// What cannot be looked at.
    Unknown,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its name, or the number where it has none.
    pub name: String,
    /// Its number.
    pub id: u32,
}

/// A directory on the way.
#[derive(Debug, Serialize)]
pub struct LevelRow {
    /// Its path.
    pub path: String,
    /// Its owner.
    pub owner: Named,
    /// Its group.
    pub group: Named,
    /// Its mode, in octal.
    pub mode: String,
    /// The entries of its ACL, if it has one.
    pub acl: Vec<String>,
    /// What it gives to whom was asked about, or to everybody else: `r-x`.
    pub gives: String,
}

/// Whom was asked about.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// The account's name, or `anonymous`.
    pub name: String,
    /// Its number; null for anonymous.
    pub uid: Option<u32>,
    /// Its groups.
    pub groups: Vec<Named>,
    /// A member of the admin group, or root.
    pub administrator: bool,
}

/// What somebody may do.
#[derive(Debug, Serialize)]
pub struct Answers {
    /// Read manifests, tags and blobs.
    pub pull: Answer,
    /// Write them.
    pub push: Answer,
    /// Create this repository, or one beneath it where it is there.
    pub create: Answer,
    /// Remove manifests, tags and blobs.
    pub delete: Answer,
}

/// A yes or no.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Null where the server cannot look far enough to tell.
    pub allowed: Option<bool>,
    /// Why, in one line: the same that the server's log says of a refusal.
    pub reason: String,
    /// The command that would make it a yes, if one would.
    pub grant: Option<String>,
    /// Others that would.
    pub alternatives: Vec<Other>,
}

/// Another command.
#[derive(Debug, Serialize)]
pub struct Other {
    /// The command line.
    pub command: String,
    /// What it does besides.
    pub effect: String,
}

/// All that answers rest on.
pub(super) struct View {
    pub(super) policy: Policy,
    pub(super) repo: RepoName,
    /// As the server's account sees it.
    pub(super) way: Way,
    pub(super) state: State,
    pub(super) server: u32,
}

/// Answers a question. May block, as the name service does.
pub fn report(question: &Question) -> Result<Report, ReportError> {
    let admins = question.admin_group.as_deref().map(group).transpose()?;
    let policy = Policy { anonymous: question.anonymous, admins: admins.as_ref().map(|g| g.id) };
    let who = question.user.as_deref().map(person).transpose()?;
    let root = Dir::open_root(&question.root)?;
    let seen = Rights::look(&root, &question.repo)?;
    let server = server::account(&root)?;
    sighted(&seen, server.as_ref())?;
    let problems =
        server.as_ref().map(|account| server::report(account, &root, &question.repo, &seen));
    let state = state(&root, &question.repo, &seen);
    let view = View {
        policy,
        repo: question.repo.clone(),
        server: server.as_ref().map_or(seen.levels[0].uid, |account| account.uid),
        way: match &server {
            Some(account) => server::sees(account, seen),
            None => seen,
        },
        state,
    };
    let subject = who.as_ref().map(|who| view.subject(who));
    let gives_to = who.clone().unwrap_or_else(|| people::everybody_else(&view.way));
    Ok(Report {
        root: question.root.display().to_string(),
        repository: question.repo.as_str().to_owned(),
        path: question.root.join(question.repo.as_str()).display().to_string(),
        state,
        read_only: view.way.read_only,
        anonymous: match question.anonymous {
            Anonymous::Pull => "pull",
            Anonymous::Nothing => "none",
        },
        admin_group: admins,
        server: problems,
        levels: view.levels(&gives_to),
        user: subject,
        answers: who.as_ref().map(|who| view.answers(who)),
        who: who.is_none().then(|| people::everybody(&view)),
    })
}

/// What ends for the command, though it would not for the server, makes every answer wrong.
fn sighted(seen: &Way, server: Option<&User>) -> Result<(), ReportError> {
    let own = rustix::process::geteuid().as_raw();
    match &seen.stopped {
        Some(error)
            if error.errno() == Some(Errno::ACCESS)
                && server.is_none_or(|account| account.uid != own) =>
        {
            Err(ReportError::Blind { source: error.clone() })
        }
        _ => Ok(()),
    }
}

fn group(name: &str) -> Result<Named, ReportError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Named { name: group.name, id: group.gid.as_raw() }),
        Ok(None) => Err(ReportError::NoGroup(name.to_owned())),
        Err(error) => Err(ReportError::Untold(format!("--admin-group {name:?}: {error}"))),
    }
}

fn person(name: &str) -> Result<Who, ReportError> {
    if name == ANONYMOUS {
        return Ok(Who::Anonymous);
    }
    match User::find(name) {
        Ok(Some(user)) => Ok(Who::User(Arc::new(user))),
        Ok(None) => Err(ReportError::NoUser(name.to_owned())),
        Err(error) => Err(ReportError::Untold(error.to_string())),
    }
}

/// What is at the repository's place, as far as whoever runs the command can see.
fn state(root: &Dir, repo: &RepoName, seen: &Way) -> State {
    match (seen.whole, &seen.stopped) {
        (false, Some(_)) => State::Unknown,
        (false, None) => State::Absent,
        (true, _) => match root.dir(repo.as_str()).and_then(|dir| dir.stat_name(path::INDEX)) {
            Ok(Some(_)) => State::Repository,
            Ok(None) => State::Directory,
            Err(_) => State::Unknown,
        },
    }
}

pub(super) fn named_user(uid: u32) -> Named {
    Named { name: words::plain(&Names::Service.user(uid)), id: uid }
}

pub(super) fn named_group(gid: u32) -> Named {
    Named { name: words::plain(&Names::Service.group(gid)), id: gid }
}

impl View {
    /// Judges, and says why.
    pub(super) fn answer(&self, who: &Who, called: Option<&str>, action: Action) -> Answer {
        let judgement = self.judge(who, action);
        let case = self.case(who, called, action);
        let grant = grant(&case, &judgement);
        let reason = words::why(&case, &judgement);
        let (grant, alternatives) = match grant {
            None => (None, Vec::new()),
            Some(grant) => (Some(grant.command), grant.alternatives),
        };
        let other = |a: super::Alternative| Other { command: a.command, effect: a.effect };
        let alternatives = alternatives.into_iter().map(other).collect();
        let allowed = match judgement.right {
            Right::Yes => Some(true),
            Right::No => Some(false),
            Right::Untold => None,
        };
        Answer { allowed, reason, grant, alternatives }
    }

    /// As the server answers: nothing can be pulled or deleted where there is no repository.
    fn judge(&self, who: &Who, action: Action) -> Judgement {
        let judgement = judge(&self.policy, who, &way(&self.way), action);
        let nothing = matches!(self.state, State::Absent | State::Directory);
        if judgement.right == Right::Yes && nothing && action != Action::Push {
            return Judgement { right: Right::No, reason: Reason::Absent };
        }
        judgement
    }

    fn case<'a>(&'a self, who: &'a Who, called: Option<&'a str>, action: Action) -> Case<'a> {
        Case {
            names: Names::Service,
            policy: &self.policy,
            who,
            called,
            repo: &self.repo,
            way: &self.way,
            action,
            server: self.server,
        }
    }

    fn answers(&self, who: &Who) -> Answers {
        let answer = |action| self.answer(who, None, action);
        Answers {
            pull: answer(Action::Pull),
            push: answer(Action::Push),
            create: match self.beneath() {
                Some(beneath) => beneath.answer(who, None, Action::Push),
                None => answer(Action::Push),
            },
            delete: answer(Action::Delete),
        }
    }

    /// The same for a repository beneath this one; `None` where this one is to be created itself.
    fn beneath(&self) -> Option<View> {
        if self.state != State::Repository {
            return None;
        }
        let repo = RepoName::parse(&format!("{}/new", self.repo)).ok()?;
        let way = Way { whole: false, ..self.way.clone() };
        Some(View { repo, way, state: State::Absent, ..*self })
    }

    fn subject(&self, who: &Who) -> Subject {
        let groups = who.account().map(|user| user.groups.clone()).unwrap_or_default();
        Subject {
            name: who.name().unwrap_or(ANONYMOUS).to_owned(),
            uid: who.account().map(|user| user.uid),
            groups: groups.into_iter().map(named_group).collect(),
            administrator: self.policy.is_administrator(who),
        }
    }

    fn levels(&self, who: &Who) -> Vec<LevelRow> {
        let row = |level: &Arc<layout::rights::Level>| {
            let found = permissions(level);
            let acl = found.acl.iter().flatten();
            let spell = |entry| words::plain(&words::spell(Names::Service, entry));
            LevelRow {
                path: level.path.display().to_string(),
                owner: named_user(level.uid),
                group: named_group(level.gid),
                mode: format!("{:03o}", level.mode),
                acl: acl.map(spell).collect(),
                gives: words::letters(self.bits(who, &found)),
            }
        };
        self.way.levels.iter().map(row).collect()
    }

    fn bits(&self, who: &Who, found: &Permissions) -> u8 {
        let bits = [READ, WRITE, SEARCH].into_iter();
        let given = bits.filter(|bit| self.policy.allows(who, found, *bit));
        let all = given.fold(0, |all, bit| all | bit);
        // Whoever did not log in never writes.
        if *who == Who::Anonymous { all & !WRITE } else { all }
    }
}
