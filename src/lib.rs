//! Stillage: an OCI container registry that is nothing but files.

pub mod layout;
pub mod oci;
pub mod upkeep;
