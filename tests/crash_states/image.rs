//! Images that are pushed.

use stillage::oci::{Algorithm, Digest, Kind};

/// An image: config, layer, manifest.
#[derive(Clone, Debug)]
pub struct Image {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
    pub digest: Digest,
}

impl Image {
    /// The same for the same number. Every second one shares its config with others.
    pub fn numbered(number: usize) -> Image {
        let config = match number % 2 {
            0 => b"{}".to_vec(),
            _ => format!(r#"{{"config":{number}}}"#).into_bytes(),
        };
        let layer = format!("the layer of image {number}, which has a few more bytes").into_bytes();
        Image::of(config, layer, Algorithm::Sha256)
    }

    pub fn of(config: Vec<u8>, layer: Vec<u8>, algorithm: Algorithm) -> Image {
        let described = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(algorithm, bytes);
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
        };
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            Kind::OciImage.media_type(),
            described("application/vnd.oci.image.config.v1+json", &config),
            described("application/vnd.oci.image.layer.v1.tar", &layer),
        )
        .into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &manifest);
        Image { config, layer, manifest, digest }
    }
}
