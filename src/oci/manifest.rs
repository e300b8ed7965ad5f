//! Manifests: what a push says an image, an index or an artifact consists of.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::descriptor::{Notes, once};
use super::json::{self, StrictJsonError, Text};
use super::{Annotations, Descriptor, Kind, essence};

/// The largest manifest that is taken, in bytes: 4 MiB, which the distribution specification asks
/// registries to accept ("Pushing Manifests").
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;

/// A manifest that was parsed and found to mean one thing only.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Which of the four kinds it is.
    pub kind: Kind,
    /// An image's configuration.
    pub config: Option<Descriptor>,
    /// An image's layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// An index's entries.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one refers to.
    pub subject: Option<Descriptor>,
    /// The type of the artifact: its own, or an image's `config.mediaType`
    /// (distribution specification, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: Annotations,
}

/// Why a body is not a manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not JSON, too deep, or a key stands twice.
    #[error("the manifest is not sound JSON: {0}")]
    Json(#[from] StrictJsonError),
    /// JSON, but not of a manifest's shape.
    #[error("the manifest is malformed: {0}")]
    Shape(#[from] serde_json::Error),
    /// Schema 1, signed or not.
    #[error(
        "Docker image manifest schema 1 is not supported: push schema 2 or OCI (docker 1.10 and newer do)"
    )]
    Schema1,
    /// `schemaVersion` is neither 1 nor 2.
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    /// Neither the Content-Type nor the body says what it is.
    #[error("neither Content-Type nor mediaType says what kind of manifest this is")]
    Untyped,
    /// A type that is not one of the four.
    #[error("media type {0:?} is not a manifest that is stored here")]
    MediaType(String),
    /// The request says one type and the body another (CVE-2021-41190).
    #[error("Content-Type is {content_type:?} but the body's mediaType is {media_type:?}")]
    Disagree {
        /// What the request said.
        content_type: String,
        /// What the body says.
        media_type: String,
    },
    /// A field that the other family of manifests has (CVE-2021-41190).
    #[error("an {} must not have {field:?}: the body could be read as two things", .kind.short())]
    Confusing {
        /// What the body is said to be.
        kind: Kind,
        /// The field that does not belong.
        field: &'static str,
    },
    /// A field that must be there is not.
    #[error("an {} needs {field:?}", .kind.short())]
    Missing {
        /// What the body is said to be.
        kind: Kind,
        /// The field that is missing.
        field: &'static str,
    },
    /// The repository has these bytes as something else: one content has one meaning.
    #[error(
        "the repository lists these bytes as {there:?} and this push calls them {pushed:?}: write the mediaType into the manifest"
    )]
    OtherType {
        /// As what the repository lists them.
        there: String,
        /// As what they were pushed.
        pushed: String,
    },
    /// A key that some readers take for a known one because they ignore case.
    #[error("the key {0:?} differs from a known one by case only")]
    CaseVariant(String),
}

/// A manifest's fields, before anything is made of them.
#[derive(Default)]
struct Body {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    /// `null`, as Go writes an empty list, is a list that is there.
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Annotations,
    /// The names of all other fields.
    others: HashSet<String>,
}

/// Read by hand: serde's own way with unknown fields keeps a copy of every value, and a body may
/// consist of little else. No key may stand twice.
impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut schema_version = None;
        let (mut media_type, mut artifact_type) = (None, None);
        let (mut config, mut subject) = (None, None);
        let (mut layers, mut manifests) = (None, None);
        let mut notes = None;
        let mut others = HashSet::new();
        while let Some(Text(key)) = map.next_key()? {
            match key.as_ref() {
                "schemaVersion" => once(&mut schema_version, "schemaVersion", map.next_value()?)?,
                "mediaType" => once(&mut media_type, "mediaType", map.next_value::<Option<_>>()?)?,
                "artifactType" => {
                    once(&mut artifact_type, "artifactType", map.next_value::<Option<_>>()?)?;
                }
                "config" => once(&mut config, "config", map.next_value::<Option<_>>()?)?,
                "layers" => once(&mut layers, "layers", map.next_value::<Option<_>>()?)?,
                "manifests" => once(&mut manifests, "manifests", map.next_value::<Option<_>>()?)?,
                "subject" => once(&mut subject, "subject", map.next_value::<Option<_>>()?)?,
                "annotations" => once(&mut notes, "annotations", map.next_value::<Notes>()?)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    if !others.insert(key.clone().into_owned()) {
                        return Err(A::Error::custom(format!("duplicate field {key:?}")));
                    }
                }
            }
        }
        Ok(Body {
            schema_version: schema_version
                .ok_or_else(|| A::Error::missing_field("schemaVersion"))?,
            media_type: media_type.flatten(),
            artifact_type: artifact_type.flatten(),
            config: config.flatten(),
            layers: layers.map(Option::unwrap_or_default),
            manifests: manifests.map(Option::unwrap_or_default),
            subject: subject.flatten(),
            annotations: notes.map(|Notes(notes)| notes).unwrap_or_default(),
            others,
        })
    }
}

const KNOWN: [&str; 8] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
];

impl Manifest {
    /// Reads a body that was sent with `content_type`, or that lies in a layout under a descriptor
    /// of that type. A body without `mediaType` agrees with any type whose shape it has.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        let content_type = content_type.map(essence).filter(|text| !text.is_empty());
        if content_type.as_deref().is_some_and(is_schema_1) {
            return Err(ManifestError::Schema1);
        }
        json::check(bytes)?;
        let body = parse_body(bytes)?;
        let kind = agree(content_type, body.media_type.as_deref())?;
        shape(kind, &body)?;
        let artifact_type = body.artifact_type.filter(|text| !text.is_empty());
        let config_type = body.config.as_ref().map(|config| config.media_type.clone());
        Ok(Manifest {
            kind,
            artifact_type: artifact_type.or(config_type),
            config: body.config,
            layers: body.layers.unwrap_or_default(),
            manifests: body.manifests.unwrap_or_default(),
            subject: body.subject,
            annotations: body.annotations,
        })
    }

    /// Reads a body that lies in a layout and that nobody gave a type, as some old tools leave it
    /// out of index.json: the body itself says it, or shows it by its shape.
    pub fn parse_untyped(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::parse(bytes, None)
            .or_else(|_| Manifest::parse(bytes, Some(Kind::OciImage.media_type())))
            .or_else(|_| Manifest::parse(bytes, Some(Kind::OciIndex.media_type())))
    }

    /// Everything that must be in the repository for this manifest to be whole: configuration,
    /// layers and an index's entries. Layers with `urls` and the subject may be absent.
    pub fn required(&self) -> impl Iterator<Item = &Descriptor> {
        let layers = self.layers.iter().filter(|layer| layer.urls.is_empty());
        self.config.iter().chain(layers).chain(&self.manifests)
    }

    /// Everything it names but the subject, layers with `urls` included.
    pub fn references(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers).chain(&self.manifests)
    }

    /// The entries of an index that are manifests themselves. Others are blobs: BuildKit's cache
    /// is an index of layers.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|entry| Kind::of_media_type(&entry.media_type).is_some())
    }
}

fn is_schema_1(content_type: &str) -> bool {
    content_type == "application/vnd.docker.distribution.manifest.v1+json"
        || content_type == "application/vnd.docker.distribution.manifest.v1+prettyjws"
}

fn parse_body(bytes: &[u8]) -> Result<Body, ManifestError> {
    let body: Body = serde_json::from_slice(bytes)?;
    match body.schema_version {
        2 => {}
        1 => return Err(ManifestError::Schema1),
        _ => return Err(ManifestError::SchemaVersion),
    }
    let variant = |key: &&String| KNOWN.iter().any(|known| key.eq_ignore_ascii_case(known));
    match body.others.iter().find(variant) {
        Some(key) => Err(ManifestError::CaseVariant(key.clone())),
        None => Ok(body),
    }
}

/// What request and body together say the kind is.
fn agree(content_type: Option<String>, media_type: Option<&str>) -> Result<Kind, ManifestError> {
    let media_type = media_type.filter(|text| !text.is_empty());
    if let (Some(content_type), Some(media_type)) = (&content_type, media_type)
        && content_type != media_type
    {
        return Err(ManifestError::Disagree {
            content_type: content_type.clone(),
            media_type: media_type.to_owned(),
        });
    }
    let said = media_type.map(str::to_owned).or(content_type).ok_or(ManifestError::Untyped)?;
    Kind::of_media_type(&said).ok_or(ManifestError::MediaType(said))
}

/// An image has what images have and nothing of an index, and the other way round.
fn shape(kind: Kind, body: &Body) -> Result<(), ManifestError> {
    let confusing = |field| Err(ManifestError::Confusing { kind, field });
    let missing = |field| Err(ManifestError::Missing { kind, field });
    if kind.is_index() {
        if body.layers.is_some() {
            return confusing("layers");
        }
        if body.config.is_some() {
            return confusing("config");
        }
        if body.manifests.is_none() {
            return missing("manifests");
        }
    } else {
        if body.manifests.is_some() {
            return confusing("manifests");
        }
        if body.config.is_none() {
            return missing("config");
        }
        if body.layers.is_none() {
            return missing("layers");
        }
    }
    for foreign in ["fsLayers", "history", "signatures"] {
        if body.others.contains(foreign) {
            return confusing(match foreign {
                "fsLayers" => "fsLayers",
                "history" => "history",
                _ => "signatures",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn image(rest: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{DIGEST}","size":2}}{rest}}}"#
        )
    }

    fn parse(body: &str, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse(body.as_bytes(), content_type)
    }

    #[test]
    fn an_image_and_an_index() {
        let manifest = parse(&image(r#","layers":null"#), Some(IMAGE)).unwrap();
        assert_eq!(manifest.kind, Kind::OciImage);
        assert_eq!(manifest.artifact_type.as_deref(), Some("c"));
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
        assert_eq!(parse(&index, None).unwrap().kind, Kind::OciIndex);
        assert_eq!(parse(&index, Some(INDEX)).unwrap().required().count(), 0);
    }

    #[test]
    fn type_confusion_is_refused() {
        use ManifestError::*;
        let both = image(r#","layers":[],"manifests":[]"#);
        assert!(matches!(parse(&both, Some(IMAGE)), Err(Confusing { field: "manifests", .. })));
        assert!(matches!(parse(&both, Some(INDEX)), Err(Confusing { field: "layers", .. })));
        let typed = image(&format!(r#","layers":[],"mediaType":"{IMAGE}""#));
        assert!(matches!(parse(&typed, Some(INDEX)), Err(Disagree { .. })));
        assert!(matches!(
            parse(&image(r#","layers":[],"Layers":[]"#), Some(IMAGE)),
            Err(CaseVariant(_))
        ));
        assert!(matches!(parse(&image(r#","layers":[],"layers":[]"#), Some(IMAGE)), Err(Json(_))));
        assert!(matches!(parse(&image(""), Some(IMAGE)), Err(Missing { field: "layers", .. })));
        assert!(matches!(parse(&image(r#","layers":[]"#), None), Err(Untyped)));
        assert!(matches!(parse("{}", Some("text/html")), Err(Shape(_))));
        let old = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(parse(old, Some("application/json")), Err(Schema1)));
    }

    #[test]
    fn sizes_are_whole_numbers_that_fit() {
        for size in ["-1", "1e3", "9223372036854775808", "1.0", "\"1\""] {
            let body = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{DIGEST}","size":{size}}},"layers":[]}}"#
            );
            assert!(parse(&body, Some(IMAGE)).is_err(), "{size}");
        }
    }

    #[test]
    fn foreign_layers_are_not_required() {
        let layers = format!(
            r#","layers":[{{"mediaType":"l","digest":"{DIGEST}","size":1,"urls":["http://x/"]}}]"#
        );
        let manifest = parse(&image(&layers), Some(IMAGE)).unwrap();
        assert_eq!(manifest.required().count(), 1);
        assert_eq!(manifest.references().count(), 2);
    }

    #[test]
    fn what_is_not_known_is_passed_over_but_not_twice() {
        let unknown = r#","layers":[],"x":{"y":[1,{"z":null}]},"mediaType":null,"subject":null"#;
        assert!(parse(&image(unknown), Some(IMAGE)).is_ok());
        let read = |rest: &str| serde_json::from_str::<Body>(&image(rest));
        assert_eq!(read(r#","x":1,"z":[]"#).unwrap().others.len(), 2);
        for twice in [r#","x":1,"x":2"#, r#","config":null"#, r#","layers":null,"layers":[]"#] {
            assert!(read(twice).is_err(), "{twice}");
        }
        let index = r#"{"schemaVersion":2,"manifests":null}"#;
        assert_eq!(Manifest::parse_untyped(index.as_bytes()).unwrap().kind, Kind::OciIndex);
        let plain = image(r#","layers":null"#);
        assert_eq!(Manifest::parse_untyped(plain.as_bytes()).unwrap().kind, Kind::OciImage);
        assert!(Manifest::parse_untyped(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes, Some(IMAGE));
        }
    }
}
