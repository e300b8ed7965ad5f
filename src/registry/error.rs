//! What can go wrong with a deed. `http` makes statuses and codes of it, in one place.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;

use crate::layout::{self, uploads::UploadId};
use crate::oci::{ContentRange, Digest, ManifestError, Reference, RepoName};

/// A deed that was not done. Cheap to clone: everybody in a group commit gets it.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// There is no such repository.
    #[error("there is no repository {0}")]
    NameUnknown(RepoName),
    /// The repository does not have the blob.
    #[error("{repo} has no blob {digest}")]
    BlobUnknown {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
    /// The repository does not have the manifest.
    #[error("{repo} has no manifest {reference}")]
    ManifestUnknown {
        /// The repository.
        repo: RepoName,
        /// By what it was asked for.
        reference: Reference,
    },
    /// There is no such session for this user in this repository.
    #[error("there is no upload {0} of yours here: begin a new one")]
    UploadUnknown(String),
    /// A chunk that does not begin where the last one ended.
    #[error("the chunk begins at {} but {size} bytes have been received", .sent.first)]
    UploadRange {
        /// The session, which lives on.
        id: UploadId,
        /// Bytes stored so far: where the next chunk must begin.
        size: u64,
        /// What was sent.
        sent: ContentRange,
    },
    /// Another request is writing to the session.
    #[error("another request is writing to upload {0}")]
    UploadBusy(UploadId),
    /// The user has as many uploads open as one user may have.
    #[error(
        "you have {limit} uploads open, which is the most: finish one, or cancel it with DELETE"
    )]
    TooManyUploads {
        /// How many that is.
        limit: usize,
    },
    /// The body's length is not what Content-Range said. The chunk was not stored.
    #[error("Content-Range announced {announced} bytes and {received} came")]
    UploadLength {
        /// What was announced.
        announced: u64,
        /// What came.
        received: u64,
    },
    /// The body broke off. What had arrived stays in the session.
    #[error("the body broke off: {0}")]
    Body(Arc<io::Error>),
    /// The content is not what its digest says.
    #[error("the content's digest is {actual}, not {expected}")]
    DigestMismatch {
        /// The digest that the client named.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The body is not an acceptable manifest.
    #[error(transparent)]
    Manifest(Arc<ManifestError>),
    /// The manifest refers to what the repository does not have.
    #[error("the manifest refers to what is not in the repository: {}", list(.0))]
    ManifestBlobUnknown(Vec<Digest>),
    /// A manifest of the repository refers to the blob.
    #[error("blob {digest} is referred to by manifest {by}: delete that first")]
    BlobInUse {
        /// The blob.
        digest: Digest,
        /// A manifest that refers to it.
        by: Digest,
    },
    /// A file of the repository has rights of its own, which do not let the requester read it.
    #[error("{}: its own owner, mode and ACL do not let the requester read it", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else holds a lock for too long.
    #[error("the repository is busy: try again")]
    Busy {
        /// The lock's file.
        path: PathBuf,
    },
    /// There was no thread for it for too long. Nothing was done.
    #[error("the server has more to do than it can: try again")]
    Overloaded,
    /// The repository's directory was moved or replaced meanwhile.
    #[error("the repository {0} was moved or replaced meanwhile: push again")]
    Moved(RepoName),
    /// The files: a path and what is wrong with it.
    #[error(transparent)]
    Layout(layout::Error),
    /// The server itself failed: a task of it ended without an answer.
    #[error("the server gave no answer")]
    Internal,
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::as_str).collect::<Vec<_>>().join(", ")
}

impl From<layout::Error> for Error {
    fn from(error: layout::Error) -> Self {
        match error.errno() {
            Some(Errno::AGAIN) => Error::Busy { path: error.path().to_owned() },
            _ => Error::Layout(error),
        }
    }
}

impl From<ManifestError> for Error {
    fn from(error: ManifestError) -> Self {
        Error::Manifest(Arc::new(error))
    }
}

/// Results of this room.
pub type Result<T> = std::result::Result<T, Error>;
