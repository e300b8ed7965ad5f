//! Stillage: an OCI container registry that is nothing but files.
//!
//! # The rooms
//!
//! | room | what it holds | what it may use |
//! |---|---|---|
//! | [`oci`] | the words: digest, name, tag, reference, descriptor, manifest, index. No I/O | – |
//! | [`layout`] | the files: every path, one writer of durable files, locks, blobs and pool, journal | `oci` |
//! | [`graph`] | which blob refers to which | `layout` |
//! | [`registry`] | the deeds: pull, push, mount, tag, list, delete, and the commit they share | `graph` |
//! | [`upkeep`] | what an administrator runs over a whole tree: check, gc, snapshot | `graph` |
//! | [`events`] | what changed in a repository, and how far somebody was told of it | `layout` |
//! | [`auth`] | who are they, and may they: PAM, tokens, permissions | `oci` |
//! | [`access`] | what `layout` read, decided by `auth`, and why in words | `layout`, `auth` |
//! | [`http`] | the wire: route, gate, handlers, answers, the listener; webhooks | `registry`, `access`, `events` |
//! | [`web`] | what lets a plain web server serve the tree: configurations, and the mirror's script | `layout` |
//! | [`config`] | settings, checked once at the start | `http`, `registry`, `upkeep`, `access`, `web` |
//! | [`wipe`] | memory is wiped when it is given back | – |
//!
//! The program itself, `main` and one file of `commands/` for each command, sees all of them.
//! `auth` and `registry` never see each other. How a line knows its room: a status code or a header
//! is `http`; a path, an fsync or a lock is `layout`; "what points at what" is `graph`; "is this
//! push acceptable" is `registry`; a user name is `auth`.
//!
//! # What always holds
//!
//! 1. A repository is a directory that is a valid OCI image layout. Its index.json is the one truth;
//!    everything else can be made from it and from the blobs.
//! 2. index.json changes by one rename, under the repository's lock, after everything it relies on
//!    is on the disk. What a push acknowledged survives a power cut; what it did not acknowledge,
//!    no reader sees.
//! 3. A file that cannot be read is an error with its path, never an empty answer.
//! 4. Blobs are 0444, never written again, and shared only as inodes that the server wrote and
//!    hashed itself.
//! 5. Every open beneath ROOT refuses symlinks and special files.
//! 6. Whatever is cached is checked against the files before it is believed: anybody may change the
//!    tree behind the server's back.
//!
//! The format of the tree is written down in `layout-spec/`, so that a second implementation can be
//! written from it alone.

pub mod access;
pub mod auth;
pub mod config;
pub mod events;
pub mod graph;
pub mod http;
pub mod layout;
pub mod oci;
pub mod registry;
pub mod upkeep;
pub mod web;
pub mod wipe;
