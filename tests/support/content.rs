//! Random content, and the requests with which a client pushes it.

use sha2::{Digest as _, Sha256, Sha512};

use super::http::{Client, Request, Response};

/// `application/vnd.oci.image.manifest.v1+json`
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.index.v1+json`
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// `application/vnd.docker.distribution.manifest.v2+json`
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// `application/vnd.docker.distribution.manifest.list.v2+json`
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// `application/vnd.oci.image.config.v1+json`
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// `application/vnd.oci.image.layer.v1.tar`
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Random bytes.
pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

/// Random bytes in hexadecimal, twice as many characters.
pub fn random_hex(len: usize) -> String {
    hex(&random(len))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `sha256:<hex>` of the bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// `sha512:<hex>` of the bytes.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

/// A small image as a client would push it: blobs first, manifest last.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:<hex>` of [`Image::manifest`].
    pub digest: String,
    /// The manifest's bytes, an OCI image manifest.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The layers' bytes.
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    /// An image with one random layer of this many bytes.
    pub fn random(layer_len: usize) -> Image {
        Image::of(vec![random(layer_len)], "")
    }

    /// An image of these layers; `more` is put into the manifest: `,"subject":{…}` for instance.
    pub fn of(layers: Vec<Vec<u8>>, more: &str) -> Image {
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("\"{}\"", sha256(layer))).collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}},"nonce":"{}"}}"#,
            diff_ids.join(","),
            random_hex(8)
        )
        .into_bytes();
        let described: Vec<String> =
            layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]{more}}}"#,
            descriptor(OCI_CONFIG, &config),
            described.join(",")
        )
        .into_bytes();
        Image { digest: sha256(&manifest), manifest, config, layers }
    }
}

/// An artifact that refers to a subject: what signatures and attestations look like.
/// Its only blob is the empty config `{}`, which must have been pushed.
pub fn referrer(subject_digest: &str, subject_len: usize, artifact_type: &str) -> Vec<u8> {
    let empty = descriptor("application/vnd.oci.empty.v1+json", b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"{artifact_type}","config":{empty},"layers":[{empty}],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject_digest}","size":{subject_len}}},"annotations":{{"nonce":"{}"}}}}"#,
        random_hex(8)
    )
    .into_bytes()
}

/// An OCI index of these manifests (media type, bytes).
pub fn index(manifests: &[(&str, &[u8])]) -> Vec<u8> {
    let described: Vec<String> =
        manifests.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        described.join(",")
    )
    .into_bytes()
}

/// The descriptor of these bytes as JSON.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, sha256(bytes), bytes.len())
}

impl Client {
    /// POST, then PUT with the whole body. Returns the digest; fails the test unless 202 and 201.
    #[track_caller]
    pub fn push_blob(&self, repo: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let location = self.start_upload(repo);
        let put = Request::put(with_query(&location, &format!("digest={digest}")))
            .header("Content-Type", "application/octet-stream")
            .body(bytes);
        self.send(put).expect_status(201);
        digest
    }

    /// POST without a body. Returns the Location of the session as path and query.
    #[track_caller]
    pub fn start_upload(&self, repo: &str) -> String {
        let answer = self.send(Request::post(format!("/v2/{repo}/blobs/uploads/")));
        answer.expect_status(202).location()
    }

    /// PUT of a manifest by tag or digest, the answer as it is.
    #[track_caller]
    pub fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Response {
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.send(Request::put(path).header("Content-Type", media_type).body(bytes))
    }

    /// Pushes blobs and manifest of an image under a tag or its digest; fails the test unless all are 201.
    #[track_caller]
    pub fn push_image(&self, repo: &str, reference: &str, image: &Image) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repo, blob);
        }
        self.put_manifest(repo, reference, OCI_MANIFEST, &image.manifest).expect_status(201);
    }

    /// Pulls manifest, config and layers and compares them; fails the test at any difference.
    #[track_caller]
    pub fn assert_pulls(&self, repo: &str, reference: &str, image: &Image) {
        let manifest = self.get(&format!("/v2/{repo}/manifests/{reference}")).expect_status(200);
        assert_eq!(manifest.body, image.manifest, "manifest of {repo}:{reference}");
        assert_eq!(manifest.header("docker-content-digest"), Some(image.digest.as_str()));
        for blob in image.layers.iter().chain([&image.config]) {
            let digest = sha256(blob);
            let answer = self.get(&format!("/v2/{repo}/blobs/{digest}")).expect_status(200);
            assert!(answer.body == *blob, "blob {digest} of {repo} differs");
        }
    }

    /// The tags of a repository as `tags/list` gives them.
    #[track_caller]
    pub fn tags(&self, repo: &str) -> Vec<String> {
        let list = self.get(&format!("/v2/{repo}/tags/list")).expect_status(200).json();
        list["tags"]
            .as_array()
            .unwrap_or_else(|| panic!("tags is no list: {list}"))
            .iter()
            .map(|tag| tag.as_str().expect("a tag is a string").to_owned())
            .collect()
    }

    /// GET `/token` with Basic credentials (none when the user is empty) and these scopes.
    /// The token, or the answer that refused it.
    #[track_caller]
    pub fn token(&self, user: &str, password: &str, scopes: &[&str]) -> Result<String, Response> {
        let mut query = String::from("service=stillage");
        for scope in scopes {
            query.push_str("&scope=");
            query.push_str(&scope.replace(':', "%3A").replace('/', "%2F").replace(',', "%2C"));
        }
        let mut request = Request::get(format!("/token?{query}"));
        if !user.is_empty() {
            request = request.basic(user, password);
        }
        let answer = self.send(request);
        if answer.status != 200 {
            return Err(answer);
        }
        let json = answer.json();
        Ok(json["token"].as_str().unwrap_or_else(|| panic!("no token in {json}")).to_owned())
    }

    /// This client with a token for pull and push of one repository; fails the test if it is refused.
    #[track_caller]
    pub fn logged_in(&self, user: &str, password: &str, repo: &str) -> Client {
        match self.token(user, password, &[&format!("repository:{repo}:pull,push,delete")]) {
            Ok(token) => self.with_authorization(format!("Bearer {token}")),
            Err(answer) => panic!("no token for {user}: {answer:?}"),
        }
    }
}

/// A Location with one more query parameter; what it had is kept.
pub fn with_query(location: &str, parameter: &str) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}{parameter}")
}
