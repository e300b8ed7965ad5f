//! Where requests begin and end in what a client sends, read strictly.
//!
//! hyper is lenient where RFC 9112 lets a server be: it takes a line feed alone for the end of
//! a line, and `Transfer-Encoding` where `Content-Length` stands beside it. A proxy in front may
//! read the same bytes otherwise, and then one client's body becomes another client's request.
//! So the bytes are looked at before hyper gets them, and whatever could be read in two ways is
//! refused. Nothing is kept but where in a request we are: a body passes by uncopied.

/// The longest line of a chunk's size, and of all trailer lines together.
const MAX_CHUNK_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 * 1024;

/// As much of a header's name or value as it takes to know the two that frame a body.
const KEPT: usize = 24;

/// What cannot be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// In a head, at this byte of what was given.
    Head(usize),
    /// Between the chunks of a body, likewise.
    Body(usize),
}

/// A connection's place in the requests that pass.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    line: Line,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    RequestLine,
    Headers,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    /// The line end after a chunk's data: how many of its two bytes are still to come.
    ChunkEnd(u8),
    Trailers(usize),
}

/// What a head has said about its body so far.
#[derive(Debug, Default)]
struct Head {
    length: Option<u64>,
    chunked: bool,
}

/// The line that is being read: its length, its last byte, and its beginning and end where they
/// may matter.
#[derive(Debug, Default)]
struct Line {
    len: usize,
    after_cr: bool,
    name: Vec<u8>,
    in_value: bool,
    value: Vec<u8>,
    /// The value says more than was kept of it.
    is_cut: bool,
}

enum End {
    /// The line goes on.
    Not,
    /// The byte was the line's last.
    Whole,
}

impl Framing {
    pub(super) fn new() -> Framing {
        Framing { state: State::RequestLine, line: Line::default(), head: Head::default() }
    }

    /// Looks at the next bytes of a connection.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Body(left) => {
                    let (state, len) = pass(left, rest, State::RequestLine, State::Body);
                    self.state = state;
                    len
                }
                State::ChunkData(left) => {
                    let (state, len) = pass(left, rest, State::ChunkEnd(2), State::ChunkData);
                    self.state = state;
                    len
                }
                _ => {
                    self.step(rest[0]).ok_or(match self.state {
                        State::RequestLine | State::Headers => Violation::Head(at),
                        _ => Violation::Body(at),
                    })?;
                    1
                }
            };
        }
        Ok(())
    }

    /// One byte outside of data; `None` where it must not stand.
    fn step(&mut self, byte: u8) -> Option<()> {
        match self.state {
            State::RequestLine => {
                if let End::Whole = self.line.push(byte)? {
                    // Empty lines before a request are allowed (RFC 9112, 2.2).
                    if self.line.take().len > 0 {
                        self.state = State::Headers;
                    }
                }
            }
            State::Headers => self.header(byte)?,
            State::ChunkSize => self.chunk_size(byte)?,
            State::ChunkEnd(left) => {
                if byte != if left == 2 { b'\r' } else { b'\n' } {
                    return None;
                }
                self.state = if left == 2 { State::ChunkEnd(1) } else { State::ChunkSize };
            }
            State::Trailers(seen) => {
                if seen == MAX_TRAILERS {
                    return None;
                }
                self.state = State::Trailers(seen + 1);
                if let End::Whole = self.line.push(byte)?
                    && self.line.take().len == 0
                {
                    self.state = State::RequestLine;
                }
            }
            State::Body(_) | State::ChunkData(_) => {}
        }
        Some(())
    }

    fn header(&mut self, byte: u8) -> Option<()> {
        if self.line.len == 0 && matches!(byte, b' ' | b'\t') {
            // A folded line: some readers join it to the one before.
            return None;
        }
        if let End::Whole = self.line.push(byte)? {
            let line = self.line.take();
            if line.len > 0 {
                return self.head.take(&line);
            }
            self.state = match std::mem::take(&mut self.head) {
                Head { length: Some(_), chunked: true } => return None,
                Head { chunked: true, .. } => State::ChunkSize,
                Head { length, .. } => match length.unwrap_or(0) {
                    0 => State::RequestLine,
                    length => State::Body(length),
                },
            };
        }
        Some(())
    }

    fn chunk_size(&mut self, byte: u8) -> Option<()> {
        if self.line.len > MAX_CHUNK_LINE {
            return None;
        }
        if let End::Whole = self.line.push(byte)? {
            let line = self.line.take();
            let digits = line.name.split(|b| *b == b';').next().unwrap_or_default();
            if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            let size = u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
            self.state = if size == 0 { State::Trailers(0) } else { State::ChunkData(size) };
        }
        Some(())
    }
}

/// Passes data by: the state after it, and how many bytes it was.
fn pass(left: u64, bytes: &[u8], done: State, more: fn(u64) -> State) -> (State, usize) {
    match usize::try_from(left) {
        Ok(left) if left <= bytes.len() => (done, left),
        _ => (more(left - bytes.len() as u64), bytes.len()),
    }
}

impl Line {
    /// `None` for a line feed without carriage return before it, and for the reverse.
    fn push(&mut self, byte: u8) -> Option<End> {
        match (self.after_cr, byte) {
            (true, b'\n') => return Some(End::Whole),
            (true, _) | (false, b'\n') => return None,
            (false, b'\r') => {
                self.after_cr = true;
                return Some(End::Not);
            }
            (false, _) => {}
        }
        self.len += 1;
        if self.in_value {
            if self.value.len() < KEPT {
                if !self.value.is_empty() || !is_blank(byte) {
                    self.value.push(byte);
                }
            } else if !is_blank(byte) {
                self.is_cut = true;
            }
        } else if byte == b':' {
            self.in_value = true;
        } else if self.name.len() < KEPT {
            self.name.push(byte);
        }
        Some(End::Not)
    }

    fn take(&mut self) -> Line {
        std::mem::take(self)
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

impl Head {
    /// Takes a header line; `None` where the body's length would have two meanings.
    fn take(&mut self, line: &Line) -> Option<()> {
        if !line.in_value || line.name.is_empty() || line.name.iter().any(|b| is_blank(*b)) {
            return None;
        }
        let value = line.value.trim_ascii_end();
        if line.name.eq_ignore_ascii_case(b"content-length") {
            let plain = !line.is_cut && !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            if !plain || self.length.is_some() {
                return None;
            }
            self.length = Some(str::from_utf8(value).ok()?.parse().ok()?);
        } else if line.name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || line.is_cut || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            self.chunked = true;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<(), Violation> {
        Framing::new().take(text.as_bytes())
    }

    /// Reads requests, and says whether they end where the text ends.
    fn ends(text: &str) -> bool {
        let mut framing = Framing::new();
        framing.take(text.as_bytes()).unwrap();
        framing.state == State::RequestLine && framing.line.len == 0
    }

    #[test]
    fn requests_end_where_they_say() {
        for whole in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:  5 \r\n\r\nab\n\r\0GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\nA;x=y\r\n0123456789\r\n1\r\n\r\r\n0\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n",
        ] {
            assert!(ends(whole), "{whole:?}");
        }
        for part in ["GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"] {
            assert!(!ends(part), "{part:?}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused_where_it_stands() {
        let head = |lines: &str| format!("POST / HTTP/1.1\r\n{lines}\r\n\r\n");
        for lines in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked                              , identity",
            "Content-Length: 00000000000000000000000000000003",
            "Transfer-Encoding: chunked, identity, and more of it",
            "Transfer-Encoding:\u{b}chunked",
            "Transfer-Encoding : chunked",
            "Host: x\r\n Transfer-Encoding: chunked",
            "Host: x\nTransfer-Encoding: chunked",
            "Host: x\rTransfer-Encoding: chunked",
            "no colon",
            ": no name",
        ] {
            let text = head(lines);
            match read(&text) {
                Err(Violation::Head(at)) => assert!(at < text.len(), "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert_eq!(read("GET / HTTP/1.1\n"), Err(Violation::Head(14)));
    }

    #[test]
    fn chunks_are_read_strictly() {
        let long = format!("1;{}", "x".repeat(MAX_CHUNK_LINE));
        for chunks in [
            "5\r\nabc",
            "3\nabc\r\n",
            "3\r\nabc\n",
            "3\r\nabcd",
            "\r\nabc",
            "-3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "11111111111111111\r\n",
            &long,
            &format!("0\r\n{}", "X: y\r\n".repeat(MAX_TRAILERS / 6 + 1)),
        ] {
            let text = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            let outcome = read(&text);
            // The first is only not at its end yet.
            if chunks.starts_with('5') {
                assert_eq!(outcome, Ok(()));
            } else {
                assert!(matches!(outcome, Err(Violation::Body(_))), "{text:?}: {outcome:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_changes_nothing(
            text in "(GET / HTTP/1.1\r\n|Content-Length: [0-3]\r\n|Transfer-Encoding: chunked\r\n|\r\n|[0-3]\r\n|abc|\n){0,12}",
            cut in 0..100_usize,
        ) {
            let bytes = text.as_bytes();
            let whole = Framing::new().take(bytes);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut framing = Framing::new();
            let parts = framing.take(first).and_then(|()| framing.take(second).map_err(|v| match v {
                Violation::Head(at) => Violation::Head(at + first.len()),
                Violation::Body(at) => Violation::Body(at + first.len()),
            }));
            prop_assert_eq!(whole, parts);
        }
    }
}
