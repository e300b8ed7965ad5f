//! The files: everything that touches the tree on the disk, and nothing that knows what a push
//! or a request is.
//!
//! - [`path`] spells every path; [`Dir`] opens beneath ROOT and follows no symlink.
//! - [`Disk`] is the narrow trait through which every durable change goes; [`durable::replace`] is
//!   the one writer of files that are replaced.
//! - [`Tree`] is ROOT with the registry's own room. [`blobs`], [`IndexFile`], [`journal`],
//!   [`uploads`], [`facts`], [`holders`] and [`notes`] are what lies in it; [`lock`] has the locks,
//!   [`Walk`] goes over all repositories, [`rights`] and [`readers`] read owners, modes and ACLs,
//!   [`KeyFile`] has the keys that sign tokens.
//! - [`history`] reads the journal, [`groups`] what comes after a mark in it, [`told`] keeps how far others
//!   were told; [`Watcher`] says which repositories may have changed; [`trash`] holds what was removed on purpose; [`pool`] goes over the
//!   pool's names; [`Collected`] says when the last collection was.
//! - [`quarantine`] takes what a repair removes, [`relink`] gives names the content that they lost.
//! - [`Staging`] makes a directory that appears whole, [`copy`] and [`Attributes`] what lies in it.
//! - [`sweep`] ends uploads that nobody goes on with; [`space`] keeps some free of them all.

pub mod account;
pub mod acl;
mod attributes;
mod blob;
mod blob_names;
pub mod blobs;
mod collected;
pub mod copy;
mod dir;
mod disk;
pub mod durable;
mod error;
pub mod facts;
pub mod groups;
pub mod history;
pub mod holders;
mod incoming;
mod index_file;
pub mod inherit;
pub mod journal;
mod listing;
pub mod lock;
mod make;
pub mod notes;
mod overwritten;
mod own_certificate;
pub mod path;
pub mod pool;
pub mod quarantine;
mod read_only;
pub mod readers;
pub mod relink;
pub mod rights;
pub mod space;
mod staging;
mod stamp;
pub mod sweep;
mod token_keys;
pub mod told;
pub mod trash;
mod tree;
pub mod uploads;
mod verified;
mod version;
pub mod views;
mod walk;
mod watch;
mod write_back;

pub use account::Account;
pub use attributes::Attributes;
pub use blob::Blob;
pub use blob_names::BlobNames;
pub use collected::Collected;
pub use dir::{
    Dir, DirId, Entries, Inode, changed, is_regular, modified, read_all, read_known, size_of,
    stat_file,
};
pub use disk::{Disk, RealDisk};
pub use error::{At, Error, OrAbsent, Result};
pub use incoming::Incoming;
pub use index_file::{IndexFile, MAX_INDEX};
pub use listing::{Entry, Listed, Listing};
pub use overwritten::{Older, Overwritten, overwritten};
pub use own_certificate::OwnCertificate;
pub use staging::{Place, Staging, StagingError, remove_all};
pub use stamp::Stamp;
pub use token_keys::{Key, KeyFile, Keys};
pub use tree::{Tree, is_remote};
pub use verified::Verdict;
pub use version::Version;
pub use walk::Walk;
pub use watch::{Changed, Watcher};
