//! What is fuzzed: everything that reads bytes of outsiders, with what must always hold of it.
//!
//! Each function takes any bytes at all and panics where something does not hold. `fuzz/run NAME`
//! feeds them with what libFuzzer makes up, `tests/corpus.rs` with the files of `corpus/NAME` and
//! with variants of them.
#![allow(dead_code, reason = "every fuzz target is a program with one of them")]

#[path = "targets/login.rs"]
mod login;
#[path = "targets/tree.rs"]
mod tree;
#[path = "targets/wire.rs"]
mod wire;

pub(crate) use login::*;
pub(crate) use tree::*;
pub(crate) use wire::*;

/// Takes any bytes, and panics where something does not hold.
pub(crate) type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const ALL: [(&str, Target); 17] = [
    // What clients send.
    ("framing", framing),
    ("route", route),
    ("origin", origin),
    ("page", page),
    ("digest", digest),
    ("range", range),
    ("manifest", manifest),
    // Who they say they are.
    ("authorization", authorization),
    ("token", token),
    ("scope", scope),
    // What people with a shell, other tools and crashes leave in a tree.
    ("index", index),
    ("journal", journal),
    ("fact", fact),
    ("holder", holder),
    ("owner", owner),
    ("acl", acl),
    ("keys", keys),
];
