//! What passes the framing, and what does not.

use super::super::head::{MAX_HEAD, MAX_LINES, MAX_TARGET};
use super::*;
use proptest::prelude::*;

/// The violation in a text, however it is cut.
fn violation(text: &str) -> Option<Violation> {
    Framing::default().look(text.as_bytes()).violation
}

fn wrong(text: &str) -> Option<Wrong> {
    match violation(text)? {
        Violation::Head(refused) => Some(refused.why),
        Violation::Body => None,
    }
}

/// Reads requests, and says whether they end where the text ends.
fn ends(text: &str) -> bool {
    let mut framing = Framing::default();
    let look = framing.look(text.as_bytes());
    assert_eq!(look.violation, None, "{text:?}");
    framing.is_between() && look.passed == text.len()
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
fn what_has_two_readings_is_refused() {
    let head = |lines: &str| format!("POST /v2/ HTTP/1.1\r\n{lines}\r\n\r\n");
    for (lines, why) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", Wrong::TwoLengths),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", Wrong::TwoLengths),
        ("Content-Length: 3\r\nContent-Length: 3", Wrong::Twice("Content-Length")),
        ("Content-Length: 3, 3", Wrong::Length),
        ("Content-Length: +3", Wrong::Length),
        ("Content-Length: ", Wrong::Length),
        ("Content-Length: 99999999999999999999999", Wrong::Length),
        ("Content-Length: 9223372036854775808", Wrong::Length),
        ("Content-Length: 00000000000000000000000000000003", Wrong::Length),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Wrong::Twice("Transfer-Encoding"),
        ),
        ("Transfer-Encoding: xchunked", Wrong::Encoding),
        ("Transfer-Encoding: gzip, chunked", Wrong::Encoding),
        ("Transfer-Encoding: chunked                              , identity", Wrong::Encoding),
        ("Transfer-Encoding:\u{b}chunked", Wrong::Control(0xb)),
        ("Transfer-Encoding:\u{a0}chunked", Wrong::Encoding),
        ("Transfer-Encoding : chunked", Wrong::Name("Transfer-Encoding ".to_owned())),
        ("Host: x\r\n Transfer-Encoding: chunked", Wrong::Folded),
        ("Host: x\nTransfer-Encoding: chunked", Wrong::LineFeed),
        ("Host: x\rTransfer-Encoding: chunked", Wrong::CarriageReturn),
        ("X: a\0b", Wrong::Control(0)),
        ("no colon", Wrong::NoColon),
        (": no name", Wrong::Name(String::new())),
        ("\u{e4}: y", Wrong::Name("\u{e4}".to_owned())),
    ] {
        let text = head(lines);
        let Some(Violation::Head(refused)) = violation(&text) else { panic!("{text:?} passes") };
        assert_eq!(refused.why, why, "{text:?}");
        let (method, target) = refused.asked.expect("the first line was right");
        assert_eq!((method, target.path()), (Method::POST, "/v2/"));
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(wrong(old), Some(Wrong::OldEncoding));
}

#[test]
fn a_request_line_has_three_parts() {
    for (line, why) in [
        ("GET / HTTP/1.1\n", Wrong::LineFeed),
        ("GET /\r\n", Wrong::RequestLine),
        ("GET  / HTTP/1.1\r\n", Wrong::RequestLine),
        (" GET / HTTP/1.1\r\n", Wrong::RequestLine),
        ("GET / HTTP/1.1 \r\n", Wrong::RequestLine),
        ("G\u{e4}T / HTTP/1.1\r\n", Wrong::RequestLine),
        ("GET / http/1.1\r\n", Wrong::RequestLine),
        ("GET /a\tb HTTP/1.1\r\n", Wrong::Target),
        ("GET /a#b HTTP/1.1\r\n", Wrong::Target),
        ("GET http:// HTTP/1.1\r\n", Wrong::Target),
        ("PRI * HTTP/2.0\r\n", Wrong::Version("HTTP/2.0".to_owned())),
        ("GET / HTTP/1.2\r\n", Wrong::Version("HTTP/1.2".to_owned())),
        ("\u{16}\u{3}", Wrong::Control(0x16)),
    ] {
        assert_eq!(wrong(line), Some(why), "{line:?}");
    }
}

#[test]
fn heads_are_bounded_while_they_arrive() {
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_TARGET));
    assert_eq!(wrong(&long), Some(Wrong::TargetTooLong));
    assert_eq!(wrong(&format!("GET /{}", "x".repeat(MAX_HEAD))), Some(Wrong::TargetTooLong));
    let fits = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_TARGET - 1));
    assert!(ends(&fits));
    let get = "GET / HTTP/1.1\r\n";
    let many = format!("{get}{}", "X: y\r\n".repeat(MAX_LINES + 1));
    assert_eq!(wrong(&many), Some(Wrong::TooManyLines));
    assert!(ends(&format!("{get}{}\r\n", "X: y\r\n".repeat(MAX_LINES))));
    let fill = |len| format!("{get}X: {}\r\n\r\n", "y".repeat(len - get.len() - 7));
    assert_eq!(wrong(&fill(MAX_HEAD + 1)), Some(Wrong::TooLarge));
    assert!(ends(&fill(MAX_HEAD)));
    assert_eq!(wrong(&"\r\n".repeat(MAX_HEAD)), Some(Wrong::TooLarge));
}

#[test]
fn only_whole_heads_pass() {
    let mut framing = Framing::default();
    let text = "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let whole = "GET / HTTP/1.1\r\n\r\n".len();
    assert_eq!(framing.look(&text.as_bytes()[..text.len() - 1]).passed, whole);
    assert_eq!(framing.look(&text.as_bytes()[whole..]).passed, text.len() - whole);
    let bad = framing.look(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nx\n");
    let Some(Violation::Head(refused)) = bad.violation else { panic!("{bad:?}") };
    assert_eq!((bad.passed, refused.after), (2 * whole, 4));
}

#[test]
fn chunks_are_read_strictly() {
    let long = format!("1;{}", "x".repeat(MAX_CHUNK_LINE));
    for chunks in [
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
        assert_eq!(violation(&text), Some(Violation::Body), "{text:?}");
    }
    let unfinished = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc";
    assert_eq!(violation(unfinished), None);
}

/// Shows the bytes piece by piece, as a connection does; what passed, and what did not.
fn in_pieces(bytes: &[u8], piece: usize) -> (usize, Option<Violation>) {
    let mut framing = Framing::default();
    let (mut passed, mut held) = (0, Vec::new());
    for new in bytes.chunks(piece) {
        held.extend_from_slice(new);
        let look = framing.look(&held);
        passed += look.passed;
        held.drain(..look.passed);
        if look.violation.is_some() {
            return (passed, look.violation);
        }
    }
    (passed, None)
}

/// A request's lines, some of them wrong.
const LINES: &str = "(GET / HTTP/1.1\r\n|Content-Length: [0-3]\r\n|Transfer-Encoding: chunked\r\n|\r\n|[0-3]\r\n|abc|\n){0,12}";

proptest! {
    #[test]
    fn how_the_bytes_arrive_changes_nothing(text in LINES, piece in 1..100_usize) {
        let whole = Framing::default().look(text.as_bytes());
        let parts = in_pieces(text.as_bytes(), piece);
        // Told apart only by how soon a line that never ends is seen to be wrong.
        prop_assert_eq!((whole.passed, whole.violation), parts);
    }

    #[test]
    fn what_passes_is_read_by_others_too(
        method in "[A-Z!~]{1,4}| |\u{e4}",
        target in "/?[!-~\u{e4}]{1,12}",
        lines in prop::collection::vec("[!-~]{0,6}: ?[ -~\t\u{e4}\u{0}]{0,6}", 0..4),
    ) {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let text = format!("{method} {target} HTTP/1.1\r\n{lines}\r\n");
        let look = Framing::default().look(text.as_bytes());
        if look.violation.is_none() && look.passed == text.len() {
            let mut headers = [httparse::EMPTY_HEADER; MAX_LINES];
            let mut request = httparse::Request::new(&mut headers);
            let len = request.parse(text.as_bytes()).unwrap();
            prop_assert_eq!(len, httparse::Status::Complete(text.len()));
            prop_assert!(request.path.unwrap().parse::<Uri>().is_ok());
            for header in request.headers.iter() {
                prop_assert!(http::HeaderName::from_bytes(header.name.as_bytes()).is_ok());
                prop_assert!(http::HeaderValue::from_bytes(header.value).is_ok());
            }
        }
    }
}
