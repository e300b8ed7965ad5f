//! Media types, and the four kinds of manifest.

/// The kinds of manifest that Stillage stores. Their short names are the extensions of a
/// repository's `_manifests/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An OCI image manifest, artifacts included.
    OciImage,
    /// An OCI image index.
    OciIndex,
    /// Docker's image manifest, version 2, schema 2.
    DockerImage,
    /// Docker's manifest list.
    DockerList,
}

impl Kind {
    /// All four.
    pub const ALL: [Kind; 4] =
        [Kind::OciImage, Kind::OciIndex, Kind::DockerImage, Kind::DockerList];

    /// The media type on the wire and in descriptors.
    pub fn media_type(self) -> &'static str {
        match self {
            Kind::OciImage => "application/vnd.oci.image.manifest.v1+json",
            Kind::OciIndex => "application/vnd.oci.image.index.v1+json",
            Kind::DockerImage => "application/vnd.docker.distribution.manifest.v2+json",
            Kind::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// The kind that a media type names, if it names a manifest at all. Parameters and case do
    /// not matter.
    pub fn of_media_type(text: &str) -> Option<Kind> {
        let essence = essence(text);
        Kind::ALL.into_iter().find(|kind| essence == kind.media_type())
    }

    /// The short name: `oci-image`, `oci-index`, `docker-image`, `docker-list`.
    pub fn short(self) -> &'static str {
        match self {
            Kind::OciImage => "oci-image",
            Kind::OciIndex => "oci-index",
            Kind::DockerImage => "docker-image",
            Kind::DockerList => "docker-list",
        }
    }

    /// Whether it lists other manifests instead of layers.
    pub fn is_index(self) -> bool {
        matches!(self, Kind::OciIndex | Kind::DockerList)
    }
}

/// A media type without its parameters, in lower case.
pub fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_again_by_its_media_type() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_media_type(kind.media_type()), Some(kind));
            let loud = format!(" {} ; charset=utf-8", kind.media_type().to_uppercase());
            assert_eq!(Kind::of_media_type(&loud), Some(kind));
        }
        assert_eq!(Kind::of_media_type("application/json"), None);
    }
}
