//! TLS from the client's side: certificates of the tests' own, curl that trusts one, raw connections,
//! and HTTP/2 frame by frame.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::command::{Outcome, run};
use super::content::sha256;

/// Nothing that is awaited takes longer, or the test fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A certificate and its key in files of one directory.
pub struct Pair {
    /// `cert.pem`
    pub certificate: PathBuf,
    /// `key.pem`, mode 0640
    pub key: PathBuf,
}

impl Pair {
    /// A self-signed one for localhost and 127.0.0.1, in a directory that is there.
    pub fn new(dir: &Path) -> Pair {
        let pair = Pair { certificate: dir.join("cert.pem"), key: dir.join("key.pem") };
        let key = KeyPair::generate().expect("a key");
        let certificate = params().self_signed(&key).expect("a certificate");
        pair.write(&certificate.pem(), &key.serialize_pem());
        pair
    }

    /// One of an authority: the file holds the certificate and the one between it and the root.
    /// Gives the root's certificate too, as a file.
    pub fn with_chain(dir: &Path) -> (Pair, PathBuf) {
        let pair = Pair { certificate: dir.join("cert.pem"), key: dir.join("key.pem") };
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            (params, KeyPair::generate().expect("a key"))
        };
        let (root, root_key) = authority("root");
        let (between, between_key) = authority("between");
        let root_pem = root.self_signed(&root_key).expect("a root").pem();
        let root = Issuer::new(root, root_key);
        let between_pem = between.signed_by(&between_key, &root).expect("one between").pem();
        let between = Issuer::new(between, between_key);
        let key = KeyPair::generate().expect("a key");
        let leaf = params().signed_by(&key, &between).expect("a certificate").pem();
        pair.write(&format!("{leaf}{between_pem}"), &key.serialize_pem());
        let root = dir.join("root.pem");
        fs::write(&root, root_pem).expect("the root");
        (pair, root)
    }

    /// Writes both files, the key for owner and group.
    pub fn write(&self, certificate: &str, key: &str) {
        fs::write(&self.certificate, certificate).expect("the certificate's file");
        fs::write(&self.key, key).expect("the key's file");
        set_mode(&self.key, 0o640);
    }

    /// The arguments of `serve`.
    pub fn args(&self) -> [&str; 4] {
        [
            "--tls-cert",
            self.certificate.to_str().expect("a plain path"),
            "--tls-key",
            self.key.to_str().expect("a plain path"),
        ]
    }
}

fn params() -> CertificateParams {
    CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).expect("parameters")
}

/// chmod
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// curl, which trusts the certificates of one file.
pub struct Curl {
    trusted: PathBuf,
    base: String,
}

impl Curl {
    /// For a server at this address, called localhost.
    pub fn new(addr: SocketAddr, trusted: &Path) -> Curl {
        let base = format!("https://localhost:{}", addr.port());
        Curl { trusted: trusted.to_owned(), base }
    }

    /// Runs curl on a path of the server; `args` come before it.
    #[track_caller]
    pub fn run(&self, args: &[&str], path: &str) -> Outcome {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "60", "--cacert"]).arg(&self.trusted);
        run(curl.args(args).arg(format!("{}{path}", self.base)))
    }

    /// Version and status of a GET, such as `2 200`.
    #[track_caller]
    pub fn status(&self, args: &[&str], path: &str) -> String {
        let mut all = vec!["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"];
        all.extend(args);
        self.run(&all, path).ok().stdout
    }

    /// Uploads a file in one request; gives its digest.
    #[track_caller]
    pub fn push_blob(&self, args: &[&str], repo: &str, file: &Path) -> String {
        let digest = sha256(&fs::read(file).expect("the file"));
        let data = format!("@{}", file.display());
        let mut all = vec!["--data-binary", &data, "-H", "Content-Type: application/octet-stream"];
        all.extend(args);
        let status = self.status(&all, &format!("/v2/{repo}/blobs/uploads/?digest={digest}"));
        assert!(status.ends_with(" 201"), "{status}");
        digest
    }
}

/// A TLS connection whose bytes are ours.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connects, trusting the certificates in a file, and offers one protocol.
pub fn connect(addr: SocketAddr, trusted: &Path, protocol: &[u8]) -> io::Result<Stream> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(trusted).expect("certificates") {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// All that comes until the server ends the connection.
pub fn until_closed(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap_or_else(|error| {
        panic!("not closed well: {error}, after {:?}", String::from_utf8_lossy(&all))
    });
    all
}

/// One frame of HTTP/2.
#[derive(Debug)]
pub struct Frame {
    /// Its type: see the constants.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A client that sends frames of HTTP/2 as it likes.
pub struct Http2 {
    stream: Stream,
}

impl Http2 {
    /// Connects and says hello, with an endless window for the connection as a whole.
    pub fn connect(addr: SocketAddr, trusted: &Path) -> Http2 {
        let mut stream = connect(addr, trusted, b"h2").expect("a connection");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the preface");
        let mut client = Http2 { stream };
        client.send(SETTINGS, 0, 0, &[]).expect("settings");
        client.send(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()).expect("a window");
        client
    }

    /// The bytes of a frame.
    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).expect("a length").to_be_bytes();
        let mut frame = len[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A head in HPACK without compression: POST or GET of a path.
    pub fn head(method: &str, path: &str) -> Vec<u8> {
        let mut head = vec![if method == "POST" { 0x83 } else { 0x82 }, 0x87];
        for (index, text) in [(4, path), (1, "localhost")] {
            // A path is shorter than 127 bytes, the most that one byte says.
            head.extend([index, u8::try_from(text.len()).expect("short")]);
            assert!(text.len() < 127, "{text}");
            head.extend(text.as_bytes());
        }
        head
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.raw(&Http2::frame(kind, flags, stream, payload))
    }

    /// Sends a GET.
    pub fn get(&mut self, stream: u32, path: &str) -> io::Result<()> {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &Http2::head("GET", path))
    }

    /// The next frame; pings and settings are answered.
    pub fn next(&mut self) -> io::Result<Frame> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; len];
            self.stream.read_exact(&mut payload)?;
            let frame = Frame { kind: head[3], flags: head[4], stream, payload };
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
                PING if frame.flags & ACK == 0 => self.send(PING, ACK, 0, &frame.payload)?,
                _ => return Ok(frame),
            }
        }
    }

    /// The next frame of this type on this stream, others passed over.
    pub fn until(&mut self, kind: u8, stream: u32) -> io::Result<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind && frame.stream == stream {
                return Ok(frame);
            }
        }
    }

    /// Waits until the server has read everything that was sent.
    pub fn settle(&mut self) -> io::Result<()> {
        self.send(PING, 0, 0, b"settled?")?;
        self.until(PING, 0).map(drop)
    }
}
