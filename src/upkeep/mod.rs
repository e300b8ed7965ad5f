//! Upkeep: what an administrator runs over a whole tree, beside a running server or without one.

pub mod check;
pub mod gc;
pub mod snapshot;
pub mod words;
