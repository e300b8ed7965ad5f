//! What is fuzzed: everything that reads bytes of outsiders, with what must always hold of it.
//!
//! Each function takes any bytes at all and panics where something does not hold. They stand in five
//! families, each one target of `fuzz/run`. The first byte of an input says which function of its
//! family is meant, the rest is what that function reads: `F` and a request's bytes for `framing`.
//! Every function keeps its letter, or the files that were found for it would try another one. A byte
//! that is nobody's letter chooses by its value, so that no input is lost.
//!
//! `tests/corpus.rs` feeds them with the files of `fixtures/fuzz/FAMILY` and with variants of them.
#![allow(dead_code, reason = "every fuzz target is a program with one of them")]

#[path = "targets/login.rs"]
mod login;
#[path = "targets/tree.rs"]
mod tree;
#[path = "targets/wire.rs"]
mod wire;

use login::{authorization, scope, token};
use tree::{acl, fact, holder, index, journal, keys, owner};
use wire::{digest, framing, manifest, origin, page, range, route};

/// Takes any bytes, and panics where something does not hold.
pub(crate) type Target = fn(&[u8]);

/// Functions that read much the same words, fuzzed together.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    /// The letter, the name and the function of each. `fuzz/run` reads these lines too.
    pub(crate) members: &'static [(u8, &'static str, Target)],
}

impl Family {
    /// Tries one input.
    pub(crate) fn run(&self, data: &[u8]) {
        if let Some((first, rest)) = data.split_first() {
            let (_, _, target) = self.member(*first);
            target(rest);
        }
    }

    /// Whom an input with this first byte is for.
    pub(crate) fn member(&self, first: u8) -> &'static (u8, &'static str, Target) {
        let lettered = self.members.iter().find(|(letter, ..)| *letter == first);
        lettered.unwrap_or(&self.members[usize::from(first) % self.members.len()])
    }
}

/// What the head of a request says.
pub(crate) const REQUEST: Family = Family {
    name: "request",
    members: &[
        (b'F', "framing", framing),
        (b'R', "route", route),
        (b'O', "origin", origin),
        (b'P', "page", page),
        (b'B', "range", range),
    ],
};

/// What is pushed, and by which names it is asked for.
pub(crate) const DOCUMENT: Family =
    Family { name: "document", members: &[(b'M', "manifest", manifest), (b'D', "digest", digest)] };

/// Who clients say they are, and what they ask for.
pub(crate) const LOGIN: Family = Family {
    name: "login",
    members: &[
        (b'A', "authorization", authorization),
        (b'T', "token", token),
        (b'S', "scope", scope),
    ],
};

/// What tells of a repository and its past: people with a shell, other tools and crashes write there.
pub(crate) const RECORDS: Family =
    Family { name: "records", members: &[(b'I', "index", index), (b'J', "journal", journal)] };

/// The small files and attributes beside it.
pub(crate) const HINTS: Family = Family {
    name: "hints",
    members: &[
        (b'F', "fact", fact),
        (b'H', "holder", holder),
        (b'O', "owner", owner),
        (b'A', "acl", acl),
        (b'K', "keys", keys),
    ],
};

pub(crate) const FAMILIES: [&Family; 5] = [&REQUEST, &DOCUMENT, &LOGIN, &RECORDS, &HINTS];
