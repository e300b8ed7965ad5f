//! What changed in a repository: from its journal, and from what its index.json is now where others
//! changed it.
//!
//! - [`look`] gives the changes since somebody last looked, and what to know for the next look.
//! - [`Event`] is one change; [`Event::line`] spells it as `stillage watch` prints it.
//! - [`Pending`] is what somebody has yet to look at; [`Follower`] goes after it, in memory alone.
//!
//! Nothing here depends on being told of a change in time: whoever looks late is told all the same.

mod follow;
mod follower;
mod pending;
mod state;

use std::net::IpAddr;

use serde::Serialize;

pub use follow::{Look, Seen, look};
pub use follower::Follower;
pub use pending::{Next, Pending};
pub use state::{Manifest, State};

use crate::oci::{Digest, RepoName, Tag, What};

/// One change of a tag or a manifest that readers can see.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Names this change; the same if it is told again.
    pub id: String,
    /// When it was made, or, of somebody else's change, when it was noticed (RFC 3339, UTC).
    pub time: String,
    /// In which repository.
    pub repository: RepoName,
    /// What happened.
    pub what: What,
    /// The tag it happened to.
    pub tag: Option<Tag>,
    /// The manifest that came, went, or that the tag names, or named until now.
    pub digest: Digest,
    /// What is known of that.
    pub manifest: Manifest,
    /// What the tag named before, where it names something else now.
    pub before: Option<Digest>,
    /// Whose change it was, as far as is known.
    pub by: By,
}

/// Whose change it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// It stands in the journal.
    Us {
        /// The user; none where nobody logged in.
        who: Option<String>,
        /// From where.
        from: Option<IpAddr>,
    },
    /// Another tool changed index.json.
    Outside,
    /// The journal could not be read.
    Unknown,
}

impl Event {
    /// The event as one line of JSON, without a newline.
    pub fn line(&self) -> String {
        let (who, from, outside) = match &self.by {
            By::Us { who, from } => (who.as_deref(), *from, Some(false)),
            By::Outside => (None, None, Some(true)),
            By::Unknown => (None, None, None),
        };
        let line = Line {
            time: &self.time,
            repository: self.repository.as_str(),
            what: self.what,
            tag: self.tag.as_ref().map(Tag::as_str),
            digest: &self.digest,
            media_type: &self.manifest.media_type,
            size: self.manifest.size,
            before: self.before.as_ref(),
            who,
            from,
            outside,
            id: &self.id,
        };
        // Texts and numbers cannot fail to serialise.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// An event as `stillage watch` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: &'a str,
    repository: &'a str,
    what: What,
    tag: Option<&'a str>,
    digest: &'a Digest,
    media_type: &'a str,
    size: u64,
    before: Option<&'a Digest>,
    who: Option<&'a str>,
    from: Option<IpAddr>,
    outside: Option<bool>,
    id: &'a str,
}
