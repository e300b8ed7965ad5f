//! Where requests begin and end in what a client sends, read strictly.
//!
//! hyper is lenient where RFC 9112 lets a server be: it takes a line feed alone for the end of
//! a line, and `Transfer-Encoding` where `Content-Length` stands beside it. A proxy in front may
//! read the same bytes otherwise, and then one client's body becomes another client's request.
//! So the bytes are looked at before hyper gets them, and whatever could be read in two ways is
//! refused. Nothing is kept but where in a request we are: a body passes by uncopied.
//!
//! A head passes only when it is whole and right, so hyper finds nothing to refuse in it: what is
//! refused is refused here, and can be answered with words.

use http::{Method, Uri};

use super::head::Head;
pub(super) use super::head::Wrong;

/// The longest line of a chunk's size, and of all trailer lines together.
const MAX_CHUNK_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 * 1024;

/// What a look at some bytes came to.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// So many of the bytes may pass. The others belong to something that is not whole yet: they
    /// are to be shown again, with what follows them.
    pub(super) passed: usize,
    /// What stands after these, if it cannot be read in one way only. Nothing after it can.
    pub(super) violation: Option<Violation>,
}

/// What cannot be read in one way only, or is too large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// In a request's head.
    Head(Box<Refused>),
    /// Between the chunks of a body.
    Body,
}

/// A request of which the head was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What is wrong with it.
    pub(super) why: Wrong,
    /// What was asked for, where the first line was right.
    pub(super) asked: Option<(Method, Uri)>,
    /// How many requests of the connection came before it.
    pub(super) after: u64,
}

/// A connection's place in the requests that pass.
#[derive(Debug, Default)]
pub(super) struct Framing {
    state: State,
    heads: u64,
}

#[derive(Debug)]
enum State {
    Head(Head),
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    /// The line end after a chunk's data.
    ChunkEnd,
    /// How many bytes of trailers there were.
    Trailers(usize),
}

impl Default for State {
    fn default() -> State {
        State::Head(Head::default())
    }
}

/// The next part of a request: its length, and what follows it.
type Part = Option<(usize, State)>;

/// The chunks of a body are malformed.
struct BadChunks;

impl Framing {
    /// Looks at the next bytes of a connection: those that did not pass the last time, then new ones.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Look {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.part(&bytes[passed..]) {
                Ok(Some((len, next))) => {
                    passed += len;
                    self.state = next;
                }
                Ok(None) => break,
                Err(violation) => return Look { passed, violation: Some(violation) },
            }
        }
        Look { passed, violation: None }
    }

    /// Whether a request has begun to arrive, or is not at its end.
    #[cfg(test)]
    fn is_between(&self) -> bool {
        matches!(&self.state, State::Head(head) if !head.has_begun())
    }

    fn part(&mut self, rest: &[u8]) -> Result<Part, Violation> {
        match &mut self.state {
            State::Head(head) => match head.look(rest) {
                Ok(Some(len)) => {
                    let next = after_head(head);
                    self.heads += 1;
                    Ok(Some((len, next)))
                }
                Ok(None) => Ok(None),
                Err(why) => {
                    let refused = Refused { why, asked: head.asked(), after: self.heads };
                    Err(Violation::Head(Box::new(refused)))
                }
            },
            State::Body(left) => Ok(data(*left, rest, State::default(), State::Body)),
            State::ChunkData(left) => Ok(data(*left, rest, State::ChunkEnd, State::ChunkData)),
            State::ChunkSize => chunk_size(rest).map_err(|BadChunks| Violation::Body),
            State::ChunkEnd => chunk_end(rest).map_err(|BadChunks| Violation::Body),
            State::Trailers(seen) => trailer(*seen, rest).map_err(|BadChunks| Violation::Body),
        }
    }
}

fn after_head(head: &Head) -> State {
    match (head.is_chunked(), head.length()) {
        (true, _) => State::ChunkSize,
        (false, None | Some(0)) => State::default(),
        (false, Some(length)) => State::Body(length),
    }
}

/// Passes data by.
fn data(left: u64, bytes: &[u8], done: State, more: fn(u64) -> State) -> Part {
    Some(match usize::try_from(left) {
        Ok(left) if left <= bytes.len() => (left, done),
        _ => (bytes.len(), more(left - bytes.len() as u64)),
    })
}

/// The line at the beginning of the bytes, without its end, if it is whole.
fn line(bytes: &[u8], most: usize) -> Result<Option<&[u8]>, BadChunks> {
    let within = &bytes[..bytes.len().min(most + 2)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if within.len() < most + 2 { Ok(None) } else { Err(BadChunks) };
    };
    match within[..end].split_last() {
        Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some(line)),
        _ => Err(BadChunks),
    }
}

fn chunk_size(rest: &[u8]) -> Result<Part, BadChunks> {
    let Some(line) = line(rest, MAX_CHUNK_LINE)? else {
        return Ok(None);
    };
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(BadChunks);
    }
    let text = str::from_utf8(digits).map_err(|_| BadChunks)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| BadChunks)?;
    let next = if size == 0 { State::Trailers(0) } else { State::ChunkData(size) };
    Ok(Some((line.len() + 2, next)))
}

fn chunk_end(rest: &[u8]) -> Result<Part, BadChunks> {
    match rest {
        [b'\r', b'\n', ..] => Ok(Some((2, State::ChunkSize))),
        [b'\r'] => Ok(None),
        _ => Err(BadChunks),
    }
}

fn trailer(seen: usize, rest: &[u8]) -> Result<Part, BadChunks> {
    let Some(line) = line(rest, MAX_TRAILERS - seen)? else {
        return Ok(None);
    };
    let len = line.len() + 2;
    let next = if line.is_empty() {
        State::default()
    } else {
        let seen = seen + len;
        if seen > MAX_TRAILERS {
            return Err(BadChunks);
        }
        State::Trailers(seen)
    };
    Ok(Some((len, next)))
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
