//! Trees written as files, without a server: the same content for Stillage (and nginx, which serves the
//! same tree) and for docker-registry.
//!
//! Content is written once and has a name in both. 100,000 pushes would take longer than all the rest.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufWriter, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::content::{self, Content, Image, MANIFEST, hex};
use crate::place::Place;

/// What OCI image layouts begin with.
const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A Stillage tree and a docker-registry's with the same content.
pub(crate) struct Trees {
    pub(crate) stillage: PathBuf,
    pub(crate) registry: PathBuf,
}

impl Trees {
    pub(crate) fn new(place: &Place) -> Result<Trees> {
        let (stillage, registry) = (place.room("tree")?, place.room("registry")?);
        fs::set_permissions(&stillage, Permissions::from_mode(0o755))?;
        let room = stillage.join(".stillage");
        fs::create_dir(&room)?;
        fs::set_permissions(&room, Permissions::from_mode(0o700))?;
        fs::write(room.join("version"), "1\n")?;
        Ok(Trees { stillage, registry })
    }

    /// All shelves of the pool: one is made, and made durable, with the first blob that lies there, and pushes
    /// would not be alike.
    pub(crate) fn shelves(&self) -> Result<()> {
        for shelf in 0..=255 {
            fs::create_dir_all(self.pool(&format!("{shelf:02x}")).with_file_name(""))?;
        }
        Ok(())
    }

    /// Nobody serves them any more.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.stillage)?;
        Ok(fs::remove_dir_all(&self.registry)?)
    }

    /// A repository in both, to be filled.
    pub(crate) fn repository(&self, name: &str) -> Result<Repository<'_>> {
        fs::create_dir_all(self.stillage.join(name).join("blobs/sha256"))?;
        let entries = Vec::new();
        Ok(Repository { trees: self, name: name.to_owned(), entries })
    }

    /// One that is finished, for blobs that nothing refers to yet.
    pub(crate) fn again(&self, name: &str) -> Repository<'_> {
        Repository { trees: self, name: name.to_owned(), entries: Vec::new() }
    }

    /// Takes a blob's content out of both, whatever repositories have it: what a push brought, so that
    /// the next one is not spared anything.
    pub(crate) fn forget(&self, repository: &str, digest: &str) {
        let hex = hex(digest);
        let of_registry = "docker/registry/v2";
        for path in [
            self.stillage.join(repository).join("blobs/sha256").join(hex),
            self.pool(hex),
            self.registry.join(format!("{of_registry}/blobs/sha256/{}/{hex}/data", &hex[..2])),
            self.registry
                .join(format!("{of_registry}/repositories/{repository}/_layers/sha256/{hex}/link")),
        ] {
            // Each lies in one of the trees only.
            let _ = fs::remove_file(path);
        }
    }

    fn pool(&self, hex: &str) -> PathBuf {
        self.stillage.join(".stillage/pool/sha256").join(&hex[..2]).join(hex)
    }
}

/// A repository in the making; complete after [`Repository::finish`].
pub(crate) struct Repository<'a> {
    trees: &'a Trees,
    name: String,
    /// Of index.json.
    entries: Vec<Value>,
}

impl Repository<'_> {
    /// A blob with its names in both trees.
    pub(crate) fn blob(&self, content: &Content) -> Result<String> {
        let digest = content.digest();
        self.file(&digest, |file| content.write_to(file))?;
        self.link(&format!("_layers/sha256/{}", hex(&digest)), &digest)?;
        Ok(digest)
    }

    /// A manifest without a tag: its digest.
    pub(crate) fn manifest(&mut self, manifest: &[u8]) -> Result<String> {
        let digest = content::digest(manifest);
        self.file(&digest, |file| file.write_all(manifest))?;
        self.link(&format!("_manifests/revisions/sha256/{}", hex(&digest)), &digest)?;
        Ok(digest)
    }

    /// A tag of a manifest that is there.
    pub(crate) fn tag(&mut self, tag: &str, digest: &str, size: usize) -> Result<()> {
        self.entry(tag, digest, size);
        self.link(&format!("_manifests/tags/{tag}/current"), digest)
    }

    /// A tag in Stillage's tree only.
    pub(crate) fn entry(&mut self, tag: &str, digest: &str, size: usize) {
        self.entries.push(json!({
            "mediaType": MANIFEST,
            "digest": digest,
            "size": size,
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }));
    }

    /// An image with a tag.
    pub(crate) fn image(&mut self, tag: &str, image: &Image) -> Result<String> {
        self.blob(&image.config)?;
        self.blob(&image.layer)?;
        let digest = self.manifest(&image.manifest)?;
        self.tag(tag, &digest, image.manifest.len())?;
        Ok(digest)
    }

    /// Writes index.json.
    pub(crate) fn finish(self) -> Result<()> {
        let dir = self.trees.stillage.join(&self.name);
        fs::write(dir.join("oci-layout"), OCI_LAYOUT)?;
        fs::write(dir.join("index.json"), index(&self.entries))?;
        Ok(())
    }

    /// A file in Stillage's tree only, without a name in the pool.
    fn own_file(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        let path = self.trees.stillage.join(&self.name).join("blobs/sha256").join(hex(digest));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
        Ok(file.write_all(bytes)?)
    }

    /// The file of a digest: in the repository, in the pool, and among docker-registry's blobs.
    fn file(
        &self,
        digest: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<()> {
        let hex = hex(digest);
        let path = self.trees.stillage.join(&self.name).join("blobs/sha256").join(hex);
        let pool = self.trees.pool(hex);
        let theirs = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let theirs = self.trees.registry.join(theirs);
        let made = || -> Result<()> {
            if linked(&pool, &path)? {
                return Ok(());
            }
            let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
            let mut file = BufWriter::with_capacity(1 << 16, file);
            write(&mut file)?;
            file.flush()?;
            for name in [&pool, &theirs] {
                fs::create_dir_all(name.parent().expect("a directory"))?;
                fs::hard_link(&path, name)?;
            }
            Ok(())
        };
        made().with_context(|| format!("{}", path.display()))
    }

    /// docker-registry's `link` file in a directory of the repository.
    fn link(&self, directory: &str, digest: &str) -> Result<()> {
        let repositories = "docker/registry/v2/repositories";
        let dir = self.trees.registry.join(repositories).join(&self.name).join(directory);
        fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        Ok(fs::write(dir.join("link"), digest)?)
    }
}

/// The text of an index.json.
fn index(entries: &[Value]) -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    });
    index.to_string().into_bytes()
}

/// Whether a name that is not there, or is there already, was linked from one that is there.
fn linked(from: &Path, to: &Path) -> Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// So many manifests docker-registry's tags share: each tag of its own is three directories there, and
/// with a manifest of its own ten.
const SHARED: usize = 100;

/// A repository with so many tags, `t0` and on, each with a manifest of its own in Stillage's tree; the
/// last [`SHARED`] of these are in docker-registry's too, and shared there. Gives all manifests.
pub(crate) fn many_tags(trees: &Trees, name: &str, tags: usize) -> Result<Vec<Vec<u8>>> {
    let mut repository = trees.repository(name)?;
    let image = Image::fresh(content::KIB);
    let config = (repository.blob(&image.config)?, image.config.length());
    let layer = (repository.blob(&image.layer)?, image.layer.length());
    let mut manifests = Vec::with_capacity(tags);
    for number in 0..tags {
        let note = format!("the image of tag number {number:06}");
        manifests.push(content::manifest((&config.0, config.1), (&layer.0, layer.1), &note));
    }
    let shared = tags.saturating_sub(SHARED);
    let digests: Vec<String> = manifests.iter().map(|manifest| content::digest(manifest)).collect();
    for number in 0..tags {
        let (manifest, digest) = (&manifests[number], &digests[number]);
        if number >= shared {
            repository.manifest(manifest)?;
        } else {
            repository.own_file(digest, manifest)?;
        }
        repository.entry(&format!("t{number}"), digest, manifest.len());
        let theirs = shared + number % (tags - shared);
        repository.link(&format!("_manifests/tags/t{number}/current"), &digests[theirs])?;
    }
    repository.finish()?;
    Ok(manifests)
}
