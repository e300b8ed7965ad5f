//! The words of the field, parsed once at the edge and carried inward as types. No I/O.
//!
//! Everything here follows the OCI image specification 1.1 and the distribution specification 1.1
//! (with what its main branch adds); Docker's schema 2 is spoken as well, schema 1 is not.

mod descriptor;
mod digest;
mod digest_map;
mod digest_set;
mod index;
mod json;
mod lists;
mod manifest;
mod media_type;
mod name;
mod pieces;
mod range;
mod reference;
mod sorted;
mod tag;

pub use descriptor::{Annotations, Descriptor};
pub use digest::{Algorithm, Digest, DigestBytes, DigestError, Hasher};
pub use digest_map::DigestMap;
pub use index::{Change, Index, IndexError, REF_NAME, What, tag_of_ref_name};
pub use json::StrictJsonError;
pub use lists::{referrer_list, tag_list};
pub use manifest::{MAX_MANIFEST, Manifest, ManifestError};
pub use media_type::{Kind, essence};
pub use name::{NameError, RESERVED, RepoName};
pub use range::{ByteRange, ContentRange, RangeError};
pub use reference::{Reference, ReferenceError};
pub use tag::{Tag, TagError};
