//! Configurations for the web servers of others, as text. Nothing here reads or writes a tree.

pub mod accel;
