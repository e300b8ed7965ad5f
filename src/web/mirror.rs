//! The script of a mirror: one round of rsync in the order of PROTOCOL.md, "Copies, snapshots, mirrors".

use std::path::{Path, PathBuf, absolute};

use thiserror::Error;

use crate::layout::path::{GC_LOCK, ROOM};

/// A mirror: where from, where to, and where names wait for their blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    origin: Place,
    mirror: Place,
    stage: PathBuf,
}

/// A tree on this host, or where rsync reaches one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    /// `host:/path`, `rsync://host/module/path`.
    There(String),
}

/// What no mirror can be made of.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MirrorError {
    /// rsync cannot do that, and neither can the names wait anywhere.
    #[error("{0} and {1} are both on other hosts: run it on one of them")]
    Afar(String, String),
    /// Deleting in one would delete in the other.
    #[error("{0:?} and {1:?} lie in one another: a mirror is a tree of its own")]
    Nested(PathBuf, PathBuf),
    /// It would not be what was meant, whatever it is quoted with.
    #[error(
        "{0:?} cannot be written in a script: it is empty, begins with '-', or is no plain text"
    )]
    Name(String),
    /// The working directory is gone.
    #[error("{0:?}: {1}")]
    Unreachable(PathBuf, String),
}

impl Mirror {
    /// Of `origin` in `mirror`; each is a directory, `HOST:PATH` or `rsync://…`. The names wait in
    /// `stage`, or beside the directory that is on this host: `<mirror>.names`, or
    /// `<origin>.<where the mirror is>.names`, for an origin may have several mirrors.
    ///
    /// # Errors
    /// Both are on other hosts, they lie in one another, or their names cannot be written.
    pub fn new(origin: &Path, mirror: &Path, stage: Option<&Path>) -> Result<Mirror, MirrorError> {
        let (origin, mirror) = (Place::of(origin)?, Place::of(mirror)?);
        let beside = match (&origin, &mirror) {
            (Place::There(from), Place::There(to)) => {
                return Err(MirrorError::Afar(from.clone(), to.clone()));
            }
            (Place::Here(from), Place::Here(to))
                if from.starts_with(to) || to.starts_with(from) =>
            {
                return Err(MirrorError::Nested(from.clone(), to.clone()));
            }
            (_, Place::Here(here)) | (Place::Here(here), _) => here,
        };
        let stage = match (stage, &mirror) {
            (Some(stage), _) => here(stage)?,
            (None, Place::Here(_)) => here(Path::new(&format!("{}.names", beside.display())))?,
            (None, Place::There(to)) => {
                let to = to.replace('%', "%25").replace('/', "%2F");
                here(Path::new(&format!("{}.{to}.names", beside.display())))?
            }
        };
        let outside = [&origin, &mirror].into_iter().all(|place| match place {
            Place::Here(tree) => !stage.starts_with(tree) && !tree.starts_with(&stage),
            Place::There(_) => true,
        });
        if !outside {
            return Err(MirrorError::Nested(stage, beside.clone()));
        }
        Ok(Mirror { origin, mirror, stage })
    }

    /// One round, for `sh`.
    pub fn script(&self) -> String {
        let values = [
            ("LOCK", self.lock()),
            ("ORIGIN", quoted(self.origin.text())),
            ("MIRROR", quoted(self.mirror.text())),
            ("STAGE", quoted(&self.stage.to_string_lossy())),
        ];
        super::fill(include_str!("mirror.sh"), &values)
    }

    /// What keeps blobs from being taken away between the names and the last pass.
    fn lock(&self) -> String {
        match self.origin {
            Place::Here(_) => format!(
                "\n# Deletes of blobs and collections at the origin wait for the round; pushes do not.\n\
                 if [ -e \"$ORIGIN/{ROOM}/{GC_LOCK}\" ]; then\n  exec 8<\"$ORIGIN/{ROOM}/{GC_LOCK}\"\n  \
                 flock -s 8\nfi\n"
            ),
            Place::There(_) => "\n# Nothing keeps blobs at the origin from being deleted meanwhile, but the time for which it\n\
                 # keeps what was deleted. If blobs are deleted there at once (DELETE of a blob, gc --now), mirror\n\
                 # a snapshot of it, or run this at the origin.\n"
                .to_owned(),
        }
    }
}

impl Place {
    /// As rsync reads it: a colon before the first slash is another host's.
    fn of(typed: &Path) -> Result<Place, MirrorError> {
        let text = plain(typed)?;
        let first = text.split('/').next().unwrap_or_default();
        if first.contains(':') {
            return Ok(Place::There(text.trim_end_matches('/').to_owned()));
        }
        here(typed).map(Place::Here)
    }

    fn text(&self) -> &str {
        match self {
            // It was text when it was read.
            Place::Here(path) => path.to_str().unwrap_or_default(),
            Place::There(text) => text,
        }
    }
}

/// A path on this host, from wherever the script is started.
fn here(typed: &Path) -> Result<PathBuf, MirrorError> {
    plain(typed)?;
    let whole = absolute(typed)
        .map_err(|error| MirrorError::Unreachable(typed.to_owned(), error.to_string()))?;
    plain(&whole)?;
    // Without what is empty or says "here".
    Ok(whole.components().collect())
}

fn plain(path: &Path) -> Result<&str, MirrorError> {
    let good = |text: &&str| {
        !text.is_empty() && !text.starts_with('-') && !text.chars().any(char::is_control)
    };
    let text = path.to_str().filter(good);
    text.ok_or_else(|| MirrorError::Name(path.to_string_lossy().into_owned()))
}

/// One word for `sh`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(origin: &str, to: &str) -> Result<Mirror, MirrorError> {
        Mirror::new(Path::new(origin), Path::new(to), None)
    }

    #[test]
    fn places_are_told_apart_as_rsync_does() {
        let script = mirror("/srv/a b/it's/", "host:/m").unwrap().script();
        assert!(script.contains("\nORIGIN='/srv/a b/it'\\''s'\nMIRROR='host:/m'\n"), "{script}");
        assert!(script.contains("STAGE='/srv/a b/it'\\''s.host:%2Fm.names'\n"), "{script}");
        assert!(script.contains("flock -s 8"), "{script}");
        let script = mirror("rsync://h/m/", "/srv/m").unwrap().script();
        assert!(script.contains("\nORIGIN='rsync://h/m'\n"), "{script}");
        assert!(script.contains("STAGE='/srv/m.names'\n"), "{script}");
        assert!(!script.contains("flock -s 8"), "{script}");
        assert!(!script.contains("=@"), "{script}");
        // Rounds to two mirrors of one origin do not meet.
        let stage = |to: &str| mirror("/srv/a", to).unwrap().stage;
        assert_ne!(stage("h:/m"), stage("h:/m2"));
        assert_ne!(stage("h:/a/b"), stage("h:/a%2Fb"));
        // A placeholder that somebody types is a name like any other.
        let script = mirror("/srv/@STAGE@", "/srv/@LOCK@").unwrap().script();
        assert!(script.contains("\nORIGIN='/srv/@STAGE@'\nMIRROR='/srv/@LOCK@'\n"), "{script}");
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let refused = |origin: &str, to: &str| mirror(origin, to).unwrap_err();
        assert!(matches!(refused("/a", "/a"), MirrorError::Nested(..)));
        assert!(matches!(refused("/a", "/a/b"), MirrorError::Nested(..)));
        assert!(matches!(refused("/a/b", "/a/./"), MirrorError::Nested(..)));
        assert!(matches!(refused("h:/a", "i:/b"), MirrorError::Afar(..)));
        assert!(matches!(refused("-a", "/b"), MirrorError::Name(_)));
        assert!(matches!(refused("/a", "/b\n"), MirrorError::Name(_)));
        assert!(matches!(refused("", "/b"), MirrorError::Name(_)));
        let inside = Mirror::new(Path::new("/a"), Path::new("/b"), Some(Path::new("/b/names")));
        assert!(matches!(inside.unwrap_err(), MirrorError::Nested(..)));
        assert!(mirror("/a", "/ab").is_ok());
    }
}
