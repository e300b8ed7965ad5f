//! Pulls of large blobs over plain HTTP/1.1, which the kernel sends from the file: ranges, requests one
//! behind another, clients that go away or are slow, files that change under the server; and that no
//! byte of it passes through the program.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::Registry;
use support::content::{random, sha256};
use support::http::Request;

const MIB: usize = 1024 * 1024;

/// Larger than what is handed out at once, and not a multiple of anything.
const LARGE: usize = 21 * MIB + 4321;

struct Served {
    registry: Registry,
    bytes: Vec<u8>,
    digest: String,
}

impl Served {
    fn new() -> Served {
        let registry = Registry::start(&["--auth", "none"]);
        let bytes = random(LARGE);
        let digest = registry.client().push_blob("a", &bytes);
        Served { registry, bytes, digest }
    }

    fn path(&self) -> String {
        format!("/v2/a/blobs/{}", self.digest)
    }

    fn file(&self) -> std::path::PathBuf {
        self.registry.root().join("a/blobs/sha256").join(&self.digest[7..])
    }

    fn ask(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\n", self.path())
    }

    /// A connection on which these requests were sent.
    fn asked(&self, requests: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.registry.addr()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        stream.write_all(requests.as_bytes()).expect("sent");
        stream
    }

    /// How many files and mappings of blobs the server holds.
    fn held(&self) -> (usize, usize) {
        let process = format!("/proc/{}", self.registry.pid());
        let links = fs::read_dir(format!("{process}/fd")).expect("descriptors").flatten();
        let is_blob = |target: &str| target.contains("/blobs/") || target.contains("deleted");
        let files = links.filter_map(|link| fs::read_link(link.path()).ok());
        let files = files.filter(|target| is_blob(&target.to_string_lossy())).count();
        let maps = fs::read_to_string(format!("{process}/maps")).expect("mappings");
        (files, maps.lines().filter(|line| is_blob(line)).count())
    }

    /// Waits until none is left.
    fn expect_nothing_held(&self) {
        let begun = Instant::now();
        while self.held() != (0, 0) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?} are held", self.held());
            thread::yield_now();
        }
    }
}

/// An answer's head, and its body as far as it came.
fn answer(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
    let length: u64 = length.expect("a length").parse().expect("a number");
    let mut body = Vec::new();
    match stream.take(length).read_to_end(&mut body) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {} bytes", body.len()),
    }
    (head, body)
}

#[test]
fn every_part_is_what_was_pushed() {
    let served = Served::new();
    let mut connection = served.registry.client().connect();
    let whole = connection.send(&Request::get(served.path())).expect_status(200);
    assert_eq!(sha256(&whole.body), served.digest);
    let last = LARGE - 1;
    let page = 4096;
    for (first, last) in [
        (0, 0),
        (last, last),
        (0, last),
        (1, 70_000),
        (page - 1, page),
        (page, 17 * MIB),
        (4 * MIB - 1, 4 * MIB),
        (4 * MIB + 1, 12 * MIB),
        (MIB, last),
    ] {
        let range = format!("bytes={first}-{last}");
        let answer = connection
            .send(&Request::get(served.path()).header("Range", &range))
            .expect_status(206);
        assert!(answer.body == served.bytes[first..=last], "{range}");
    }
    served.expect_nothing_held();
}

/// Sent at once, answered in their order, on one connection; small things in between.
#[test]
fn requests_one_behind_another_are_answered_in_order() {
    let served = Served::new();
    let ask = served.ask();
    let ranged = format!("{ask}Range: bytes=5-3000000\r\n\r\n");
    let missing = "GET /v2/a/manifests/none HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let head = ask.replacen("GET", "HEAD", 1);
    let mut stream = served.asked(&format!(
        "{ranged}{ask}\r\n{missing}{ask}\r\n{ranged}{head}\r\n{ask}Connection: close\r\n\r\n"
    ));
    let part = &served.bytes[5..=3_000_000];
    for expected in [part, &served.bytes, &[], &served.bytes, part] {
        let (head, body) = answer(&mut stream);
        if expected.is_empty() {
            assert!(head.starts_with("http/1.1 404"), "{head}");
        } else {
            assert!(body == expected, "{head}");
        }
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end");
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let (head, rest) = rest.split_at(end);
    assert!(head.starts_with(b"HTTP/1.1 200") && rest.starts_with(b"HTTP/1.1 200"));
    assert!(rest.ends_with(&served.bytes));
}

/// Whoever goes away, whenever, leaves neither a descriptor nor a mapping.
#[test]
fn clients_that_go_away_leave_nothing() {
    let served = Served::new();
    for taken in [0, 1, 100, 65_536, 3 * MIB, 9 * MIB] {
        let streams: Vec<_> =
            (0..8).map(|_| served.asked(&format!("{}\r\n", served.ask()))).collect();
        for mut stream in streams {
            stream.read_exact(&mut vec![0; taken]).expect("some of it");
        }
    }
    served.expect_nothing_held();
    served.registry.client().get(&served.path()).expect_status(200);
}

/// It is sent from the open file, whoever takes the name away.
#[test]
fn a_blob_that_is_deleted_meanwhile_comes_to_its_end() {
    let served = Served::new();
    let mut stream = served.asked(&format!("{}\r\n", served.ask()));
    let mut begin = vec![0; 1000];
    stream.read_exact(&mut begin).expect("the beginning");
    served.registry.client().delete(&served.path()).expect_status(202);
    let (_, body) = answer(&mut (&begin[..]).chain(&mut stream));
    assert!(body == served.bytes);
    served.registry.client().get(&served.path()).expect_status(404);
}

/// Only root can do that to a blob. The connection ends early; the server goes on.
#[test]
fn a_file_that_is_cut_short_ends_its_connection_and_nothing_else() {
    let mut served = Served::new();
    let mut slow = served.asked(&format!("{}\r\n", served.ask()));
    let mut begin = [0; 1000];
    slow.read_exact(&mut begin).expect("the beginning");
    let file = OpenOptions::new().write(true).open(served.file()).expect("root may");
    file.set_len(1000).expect("cut");
    let mut rest = Vec::new();
    let ended = slow.read_to_end(&mut rest);
    assert!(begin.len() + rest.len() < LARGE, "{ended:?}");
    served.registry.client().get("/v2/").expect_status(200);
    served.registry.logs("shorter than it was");
    served.registry.logs(&served.digest[7..]);
    served.registry.expect_damage();
}

/// A slow one gets all of it, byte for byte, and keeps nobody waiting.
#[test]
fn a_slow_reader_gets_all_of_it() {
    let served = Served::new();
    let mut slow = served.asked(&format!("{}\r\n", served.ask()));
    let mut all = Vec::new();
    let mut piece = vec![0; 100_000];
    let small = served.registry.client().push_blob("a", b"small");
    while all.len() < LARGE {
        let got = slow.read(&mut piece).expect("more");
        assert!(got > 0, "{} bytes came", all.len());
        all.extend_from_slice(&piece[..got]);
        // As long as that takes, the slow one does not read.
        served.registry.client().get(&format!("/v2/a/blobs/{small}")).expect_status(200);
    }
    assert!(all.ends_with(&served.bytes[LARGE - 100_000..]));
    let (_, body) = answer(&mut (&all[..]).chain(&mut slow));
    assert!(body == served.bytes);
}

/// What was not in memory is the same.
#[test]
fn a_file_that_has_to_be_read_from_the_disk_is_the_same() {
    let served = Served::new();
    let file = File::open(served.file()).expect("the blob");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
    let requests = format!("{}\r\n", served.ask());
    let mut streams: Vec<_> = (0..4).map(|_| served.asked(&requests)).collect();
    for stream in &mut streams {
        assert!(answer(stream).1 == served.bytes);
    }
}

/// strace on a running process, with what it has seen in a file.
struct Traced {
    strace: Child,
    _out: BufReader<std::process::ChildStderr>,
    output: std::path::PathBuf,
}

impl Traced {
    fn new(registry: &Registry) -> Traced {
        let output = registry.scratch().join("trace");
        let mut strace = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&output)
            .args(["-e", "trace=read,pread64,preadv,preadv2,write,writev,sendto,sendmsg,sendfile"])
            .args(["-p", &registry.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut out = BufReader::new(strace.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("strace says something");
        assert!(line.contains("attached"), "{line}");
        Traced { strace, _out: out, output }
    }

    /// The calls that were made, with what each returned.
    fn calls(mut self) -> Vec<(String, i64)> {
        let id = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(id, rustix::process::Signal::INT).expect("told to stop");
        self.strace.wait().expect("strace ends");
        let text = fs::read_to_string(&self.output).expect("what strace saw");
        text.lines().filter_map(call).collect()
    }
}

/// `PID NAME(…) = RESULT`, also where another thread came in between.
fn call(line: &str) -> Option<(String, i64)> {
    let (_, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let name = match rest.strip_prefix("<... ") {
        Some(resumed) => resumed.split(' ').next()?,
        None => rest.split('(').next()?,
    };
    let result = rest.rsplit_once(" = ")?.1.split(' ').next()?.parse().ok()?;
    Some((name.to_owned(), result))
}

/// The head in one call that says that more follows, the body from the file: nothing is read.
#[test]
fn no_byte_of_a_large_blob_passes_through_the_program() {
    let served = Served::new();
    let mut connection = served.registry.client().connect();
    connection.send(&Request::get("/v2/"));
    let traced = Traced::new(&served.registry);
    connection.send(&Request::get(served.path())).expect_status(200);
    let calls = traced.calls();
    let sum = |names: &[&str]| -> i64 {
        let of =
            calls.iter().filter(|(name, result)| names.contains(&name.as_str()) && *result > 0);
        of.map(|(_, result)| result).sum()
    };
    assert_eq!(sum(&["sendfile"]), LARGE as i64, "{calls:?}");
    let heads = sum(&["write", "writev", "sendto", "sendmsg"]);
    assert!(heads < 4096, "{heads} bytes were written: {calls:?}");
    let looked = sum(&["read", "pread64", "preadv", "preadv2"]);
    assert!(looked < 4096, "{looked} bytes were read: {calls:?}");
}
