//! `.stillage/collected`: when the last collection was.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::dir;
use super::durable;
use super::error::{Error, OrAbsent, Result};
use super::inherit::Purpose;
use super::path;
use super::tree::Tree;

/// A collection of a whole tree that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// When it began, in UTC (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    begin: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339")]
    end: OffsetDateTime,
}

impl Collected {
    /// One that began and ended at these times.
    pub fn new(begin: SystemTime, end: SystemTime) -> Collected {
        Collected { begin: begin.into(), end: end.into() }
    }

    /// When it began.
    pub fn begin(&self) -> SystemTime {
        self.begin.into()
    }

    /// When it ended.
    pub fn end(&self) -> SystemTime {
        self.end.into()
    }

    /// The last one; `None` if there was none yet.
    ///
    /// # Errors
    /// The file cannot be read, or is of another form.
    pub fn last(tree: &Tree) -> Result<Option<Collected>> {
        let Some(file) = tree.room.file(path::COLLECTED).or_absent()? else {
            return Ok(None);
        };
        let at = || tree.room.at(path::COLLECTED);
        let bytes = dir::read_all(&file, 4096, at)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::damaged(at(), error))
    }

    /// Makes this the last one. It is durable on return.
    pub fn keep(&self, tree: &Tree) -> Result<()> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| {
            // Only a year beyond 9999 cannot be written.
            Error::damaged(tree.room.at(path::COLLECTED), error)
        })?;
        bytes.push(b'\n');
        durable::replace(&*tree.disk, &tree.room, path::COLLECTED, &bytes, Purpose::Lock)?;
        tree.disk.sync_dir(&tree.room)
    }
}
