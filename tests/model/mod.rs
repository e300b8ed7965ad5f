//! An in-memory model of a registry, and runs of random deeds that compare a real one with it.
//!
//! - `World` is the model; [`Contents`] is all that may be pushed.
//! - [`Face`] is a registry, in this process or over the wire.
//! - [`tree`] does to the files what outsiders and time do, and asks whether each is explained.
//! - [`Run`] draws deeds from a seed, does each to both, and compares.
#![allow(unreachable_pub, reason = "a test has no other readers")]

mod compare;
mod contents;
mod deeds;
mod face;
mod in_process;
mod outside;
mod reads;
mod run;
mod sessions;
pub mod tree;
mod upkeep;
mod wire;
mod world;

pub use contents::Contents;
pub use face::Face;
pub use in_process::InProcess;
pub use run::{Failure, Op, Run, plan, shrink};
pub use wire::Wire;
