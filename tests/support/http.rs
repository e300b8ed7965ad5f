//! A small HTTP/1.1 client on a plain socket: every header visible, every byte ours.
//!
//! - [`Client::send`] makes a connection, sends one [`Request`], returns the [`Response`].
//! - [`Client::connect`] gives a [`Connection`] for several requests on one socket.
//! - [`Client::stream`] sends a body that is written as it goes, of known length or chunked.
//! - [`Client::raw`] sends any bytes and returns whatever came back.
//!
//! `try_…` return errors of the connection; the others fail the test.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;

/// No answer within this time fails the test: long enough for a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One request. Host and Content-Length are added unless given.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method, as it goes on the wire.
    pub method: String,
    /// Path and query, as they go on the wire: nothing is encoded.
    pub path: String,
    /// Additional header lines, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: &str, path: impl Into<String>) -> Request {
        Request { method: method.into(), path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    /// GET.
    pub fn get(path: impl Into<String>) -> Request {
        Request::new("GET", path)
    }

    /// HEAD.
    pub fn head(path: impl Into<String>) -> Request {
        Request::new("HEAD", path)
    }

    /// POST.
    pub fn post(path: impl Into<String>) -> Request {
        Request::new("POST", path)
    }

    /// PUT.
    pub fn put(path: impl Into<String>) -> Request {
        Request::new("PUT", path)
    }

    /// PATCH.
    pub fn patch(path: impl Into<String>) -> Request {
        Request::new("PATCH", path)
    }

    /// DELETE.
    pub fn delete(path: impl Into<String>) -> Request {
        Request::new("DELETE", path)
    }

    /// One more header line.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Request {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = body.into();
        self
    }

    /// `Authorization: Basic` of user and password.
    pub fn basic(self, user: &str, password: &str) -> Request {
        self.header("Authorization", basic(user, password))
    }

    /// `Authorization: Bearer` with a token.
    pub fn bearer(self, token: &str) -> Request {
        self.header("Authorization", format!("Bearer {token}"))
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
    }
}

/// The value of `Authorization` for user and password.
pub fn basic(user: &str, password: &str) -> String {
    let pair = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// An answer, whole.
#[derive(Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Every header line in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, transfer coding removed.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// All headers of this name, in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The body as text, lossily.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; fails the test if it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// `errors[0].code`, or empty where the body is no error document.
    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// `errors[0].message`, or empty where the body is no error document.
    pub fn message(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Location as path and query, whether it was sent relative or absolute.
    #[track_caller]
    pub fn location(&self) -> String {
        let location = self.header("location").unwrap_or_else(|| panic!("no Location: {self:?}"));
        match location.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]).to_owned(),
            None => location.to_owned(),
        }
    }

    /// Itself, if the status is this one; fails the test otherwise.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Itself, if status and the first error's code are these; fails the test otherwise.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Response {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        self
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "HTTP {}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        let shown = &self.body[..self.body.len().min(2048)];
        write!(f, "\n{}", String::from_utf8_lossy(shown))
    }
}

/// How a streamed body is framed.
#[derive(Clone, Copy, Debug)]
pub enum Framing {
    /// `Content-Length`, and exactly as many bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`; every write is one chunk.
    Chunked,
}

/// Where the server is, and the credentials that go with every request.
#[derive(Clone, Debug)]
pub struct Client {
    addr: SocketAddr,
    authorization: Option<String>,
}

impl Client {
    /// Without credentials.
    pub fn new(addr: SocketAddr) -> Client {
        Client { addr, authorization: None }
    }

    /// With this `Authorization` on every request that has none of its own.
    pub fn with_authorization(&self, value: impl Into<String>) -> Client {
        Client { addr: self.addr, authorization: Some(value.into()) }
    }

    /// A connection for several requests.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        self.try_connect().unwrap_or_else(|error| panic!("connect to {}: {error}", self.addr))
    }

    /// A connection for several requests, or why there is none.
    pub fn try_connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Connection {
            stream,
            reader,
            host: self.addr.to_string(),
            authorization: self.authorization.clone(),
        })
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn send(&self, request: Request) -> Response {
        let line = format!("{} {}", request.method, request.path);
        self.try_send(request).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// One request on a connection of its own, or how the connection failed.
    pub fn try_send(&self, request: Request) -> io::Result<Response> {
        self.try_connect()?.try_send(&request)
    }

    /// GET of a path.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.send(Request::get(path))
    }

    /// HEAD of a path.
    #[track_caller]
    pub fn head(&self, path: &str) -> Response {
        self.send(Request::head(path))
    }

    /// DELETE of a path.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.send(Request::delete(path))
    }

    /// One request whose body the closure writes. Its own `body` must be empty.
    pub fn stream(
        &self,
        request: &Request,
        framing: Framing,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Response> {
        self.try_connect()?.try_stream(request, framing, body)
    }

    /// Sends these bytes as they are. Returns all that came back until the connection ended or one
    /// answer was whole; what stays silent for ten seconds ends it too.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.addr).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        // A server may answer and close before everything is sent: that answer is what we want.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        let head = bytes.starts_with(b"HEAD ");
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..len]);
            let whole = parse_head(&answer).is_ok_and(|parsed| {
                parsed.is_some_and(|(response, at)| {
                    response.status >= 200
                        && read_body(&response, head, &mut &answer[at..]).is_ok_and(|b| b.is_some())
                })
            });
            if whole {
                break;
            }
        }
        answer
    }
}

/// One socket, for requests one after the other.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    host: String,
    authorization: Option<String>,
}

impl Connection {
    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn send(&mut self, request: &Request) -> Response {
        self.try_send(request)
            .unwrap_or_else(|error| panic!("{} {}: {error}", request.method, request.path))
    }

    /// Sends a request and reads its answer, or how the connection failed.
    pub fn try_send(&mut self, request: &Request) -> io::Result<Response> {
        let mut head = self.head(request);
        let bodiless =
            request.body.is_empty() && matches!(request.method.as_str(), "GET" | "HEAD" | "DELETE");
        let framed = request.has("content-length") || request.has("transfer-encoding");
        if !framed && !bodiless {
            head.push_str(&format!("Content-Length: {}\r\n", request.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&request.body);
        let written = self.stream.write_all(&bytes);
        self.answer_after(written, &request.method)
    }

    /// Sends a request whose body the closure writes, and reads its answer.
    pub fn try_stream(
        &mut self,
        request: &Request,
        framing: Framing,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Response> {
        let mut head = self.head(request);
        head.push_str(&match framing {
            Framing::Length(len) => format!("Content-Length: {len}\r\n\r\n"),
            Framing::Chunked => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        });
        let written = self.stream.write_all(head.as_bytes()).and_then(|()| match framing {
            Framing::Length(_) => body(&mut self.stream),
            Framing::Chunked => {
                body(&mut Chunks(&mut self.stream))?;
                self.stream.write_all(b"0\r\n\r\n")
            }
        });
        self.answer_after(written, &request.method)
    }

    fn head(&self, request: &Request) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
        if !request.has("host") {
            head.push_str(&format!("Host: {}\r\n", self.host));
        }
        if let Some(value) = self.authorization.as_ref().filter(|_| !request.has("authorization")) {
            head.push_str(&format!("Authorization: {value}\r\n"));
        }
        for (name, value) in &request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    /// A server that refuses may answer before it has read everything: the answer counts more
    /// than the failed write.
    fn answer_after(&mut self, written: io::Result<()>, method: &str) -> io::Result<Response> {
        match (written, self.read_answer(method)) {
            (_, Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
        }
    }

    fn read_answer(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                self.reader.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            let Some((mut response, _)) = parse_head(&head)? else {
                return Err(bad("the answer's head is cut short"));
            };
            if response.status < 200 {
                continue;
            }
            response.body = read_body(&response, method == "HEAD", &mut self.reader)?
                .ok_or_else(|| bad("the answer's body is cut short"))?;
            return Ok(response);
        }
    }
}

struct Chunks<'a>(&'a mut TcpStream);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.0.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Status and headers, and where the body begins; none while the head is not whole.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Response::new(&mut lines);
    let at = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(at)) => at,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(bad(&format!("not an HTTP answer: {error}"))),
    };
    let headers = parsed
        .headers
        .iter()
        .map(|line| (line.name.to_owned(), String::from_utf8_lossy(line.value).into_owned()))
        .collect();
    let status = parsed.code.ok_or_else(|| bad("an answer without status"))?;
    Ok(Some((Response { status, headers, body: Vec::new() }, at)))
}

/// The body as its headers frame it; none where the bytes end too early.
fn read_body(head: &Response, is_head: bool, from: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    if is_head || head.status == 204 || head.status == 304 {
        return Ok(Some(Vec::new()));
    }
    if head.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return read_chunks(from);
    }
    let mut body = Vec::new();
    match head.header("content-length") {
        Some(value) => {
            let len: u64 = value.parse().map_err(|_| bad("Content-Length is no number"))?;
            from.take(len).read_to_end(&mut body)?;
            Ok((body.len() as u64 == len).then_some(body))
        }
        None => {
            from.read_to_end(&mut body)?;
            Ok(Some(body))
        }
    }
}

fn read_chunks(from: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(line) = read_line(from)? else {
            return Ok(None);
        };
        let size = line.split(';').next().unwrap_or_default().trim();
        let len = u64::from_str_radix(size, 16).map_err(|_| bad("a chunk size is no number"))?;
        let before = body.len() as u64;
        (&mut *from).take(len).read_to_end(&mut body)?;
        if body.len() as u64 - before != len {
            return Ok(None);
        }
        // The end of the chunk, or after the last one the end of the (empty) trailer.
        if read_line(from)?.is_none() {
            return Ok(None);
        }
        if len == 0 {
            return Ok(Some(body));
        }
    }
}

fn read_line(from: &mut dyn Read) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        if from.read(&mut byte)? == 0 {
            return Ok(None);
        }
        line.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned()))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
