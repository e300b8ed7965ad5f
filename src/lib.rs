//! Stillage: an OCI container registry that is nothing but files.

pub mod auth;
pub mod oci;
