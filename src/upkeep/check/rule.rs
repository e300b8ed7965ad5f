//! The rules of layout-spec/rules.md, by name.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad it is when a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Damage: something is lost, wrong, unreadable, or open to those it must be closed to.
    Error,
    /// Something to know: it is served correctly, or was never Stillage's.
    Warning,
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The OCI image specification: it holds for every image layout.
    Oci,
    /// What Stillage asks in addition.
    Stillage,
}

/// Declares the enum together with what rules.md says of each rule, so that the two can only be
/// wrong together; a test compares them with the page.
macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $severity:ident, $origin:ident;)*) => {
        /// A rule of layout-spec/rules.md, which says what each demands and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule, in the order of the page.
            pub const ALL: &[Rule] = &[$(Rule::$name),*];

            /// Its name in rules.md and in reports.
            pub fn id(self) -> &'static str {
                match self { $(Rule::$name => $id),* }
            }

            /// How bad it is when it is broken.
            pub fn severity(self) -> Severity {
                match self { $(Rule::$name => Severity::$severity),* }
            }

            /// Where it comes from.
            pub fn origin(self) -> Origin {
                match self { $(Rule::$name => Origin::$origin),* }
            }
        }
    };
}

rules! {
    /// A path that the tree spells cannot be read.
    Unreadable = "unreadable", Error, Stillage;
    /// A path that the tree spells is a symlink, a special file, or a file for a directory.
    WrongFileType = "wrong-file-type", Error, Stillage;
    /// A symlink where a repository could be.
    DirectorySymlinked = "directory-symlinked", Warning, Stillage;
    /// A layout whose path is no repository name.
    NameUnreachable = "name-unreachable", Warning, Stillage;
    /// index.json without `oci-layout`.
    LayoutMissing = "layout-missing", Error, Oci;
    /// `oci-layout` does not say version 1.0.0.
    LayoutMalformed = "layout-malformed", Error, Oci;
    /// The journal proves an index.json that is not there.
    IndexMissing = "index-missing", Error, Stillage;
    /// index.json cannot be parsed.
    IndexMalformed = "index-malformed", Error, Oci;
    /// An entry without `mediaType`.
    IndexEntryUntyped = "index-entry-untyped", Error, Oci;
    /// An entry of a type that is no manifest.
    EntryNotAManifest = "entry-not-a-manifest", Warning, Stillage;
    /// A tag on several entries.
    TagDoubled = "tag-doubled", Warning, Stillage;
    /// A reference name that is no tag.
    TagMalformed = "tag-malformed", Warning, Stillage;
    /// A manifest that is named is not there.
    ManifestMissing = "manifest-missing", Error, Stillage;
    /// A manifest's descriptor has another size.
    ManifestSizeMismatch = "manifest-size-mismatch", Error, Oci;
    /// A manifest beyond 4 MiB.
    ManifestOversized = "manifest-oversized", Warning, Stillage;
    /// A manifest that is not one.
    ManifestMalformed = "manifest-malformed", Error, Oci;
    /// A descriptor names another type than the manifest itself.
    ManifestTypeMismatch = "manifest-type-mismatch", Error, Oci;
    /// `data` is not what the digest says.
    DescriptorDataMismatch = "descriptor-data-mismatch", Error, Oci;
    /// Content that a manifest needs is not there.
    BlobMissing = "blob-missing", Error, Stillage;
    /// A blob's descriptor has another size.
    BlobSizeMismatch = "blob-size-mismatch", Error, Oci;
    /// A blob hashes to something else.
    BlobDigestMismatch = "blob-digest-mismatch", Error, Oci;
    /// A file among the blobs whose name is no digest.
    BlobNameMalformed = "blob-name-malformed", Warning, Oci;
    /// A directory of blobs for an algorithm that is not known.
    AlgorithmUnknown = "algorithm-unknown", Warning, Stillage;
    /// A directory inside a repository is wider than the repository.
    InnerWider = "inner-wider", Warning, Stillage;
    /// Somebody who may not push can open the lock.
    LockOpen = "lock-open", Warning, Stillage;
    /// Somebody who may not write can open the journal.
    JournalOpen = "journal-open", Warning, Stillage;
    /// Somebody who may read the repository may not read a file of it.
    FileClosed = "file-closed", Warning, Stillage;
    /// A file that is written in place has a second name.
    FileLinked = "file-linked", Warning, Stillage;
    /// A line that is no journal line.
    JournalMalformed = "journal-malformed", Error, Stillage;
    /// index.json was written by another tool.
    JournalStampUnknown = "journal-stamp-unknown", Warning, Stillage;
    /// An older index.json was put back.
    JournalStampOlder = "journal-stamp-older", Warning, Stillage;
    /// A fact differs from the manifest.
    FactsWrong = "facts-wrong", Error, Stillage;
    /// The views were made from another index.json, or not to their end.
    ViewsStale = "views-stale", Warning, Stillage;
    /// A view shows something else than index.json does.
    ViewWrong = "view-wrong", Error, Stillage;
    /// The tree has another layout version.
    VersionUnknown = "version-unknown", Error, Stillage;
    /// Others can enter the room.
    RoomOpen = "room-open", Error, Stillage;
    /// Others can read the key, or it is too short.
    TokenKeyUnsafe = "token-key-unsafe", Error, Stillage;
    /// Others can read the key of the server's own certificate.
    TlsKeyUnsafe = "tls-key-unsafe", Error, Stillage;
    /// A blob of the pool hashes to something else.
    PoolDigestMismatch = "pool-digest-mismatch", Error, Stillage;
    /// A name in the pool that is no digest.
    PoolNameMalformed = "pool-name-malformed", Warning, Stillage;
    /// A shared inode that somebody could write.
    PoolInodeUnsafe = "pool-inode-unsafe", Warning, Stillage;
    /// One inode under two algorithms.
    InodeTwoAlgorithms = "inode-two-algorithms", Warning, Stillage;
    /// A hint gives another length than the pool's.
    HolderSizeWrong = "holder-size-wrong", Warning, Stillage;
    /// An upload session that nobody can take up.
    UploadMalformed = "upload-malformed", Warning, Stillage;
    /// A note that is none of collection's.
    NoteMalformed = "note-malformed", Warning, Stillage;
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
