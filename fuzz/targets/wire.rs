//! What clients send: the bytes of a connection, request lines, headers, manifests.

use std::net::IpAddr;

use stillage::http::Network;
use stillage::http::fuzz;
use stillage::http::route::{self, Action, Deed, MAX_PAGE, Page};
use stillage::oci::{
    Algorithm, ByteRange, ContentRange, Digest, Kind, Manifest, Reference, RepoName, Tag,
};

/// All that a client sends on one connection of HTTP/1.
pub(crate) fn framing(data: &[u8]) {
    let whole = fuzz::framing([data]);
    assert!(whole.bytes <= data.len());
    // However the bytes are cut on their way, the same pass.
    assert_eq!(whole, fuzz::framing(data.chunks(1)));
    let middle = data.len() / 2;
    assert_eq!(whole, fuzz::framing([&data[..middle], &data[middle..]]));
    // Another reader of HTTP finds the same requests in them.
    let mut rest = &data[..whole.bytes];
    while !rest.is_empty() {
        let Some(body) = head(&mut rest) else { break };
        match body {
            Length::Known(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                rest = &rest[length.min(rest.len())..];
            }
            Length::Chunked => chunks(&mut rest),
        }
    }
}

enum Length {
    Known(u64),
    Chunked,
}

/// Takes a head off the bytes; none where there are only empty lines.
fn head(rest: &mut &[u8]) -> Option<Length> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(rest) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => panic!("half a head passed"),
        Err(error) => panic!("a head passed that others refuse: {error}"),
    };
    let all = |name: &str| -> Vec<&[u8]> {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    let body = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Length::Known(0),
        ([length], []) => {
            let text = str::from_utf8(length).expect("digits").trim_matches([' ', '\t']);
            assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
            Length::Known(text.parse().expect("a number"))
        }
        ([], [coding]) => {
            assert!(coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            Length::Chunked
        }
        _ => panic!("two lengths passed: {lengths:?} {codings:?}"),
    };
    *rest = &rest[length..];
    Some(body)
}

/// Takes a body in chunks off the bytes, as far as it is there.
fn chunks(rest: &mut &[u8]) {
    loop {
        let (at, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => {
                assert!(rest.is_empty(), "half a line passed");
                return;
            }
            Err(_) => panic!("a chunk passed that others refuse"),
        };
        *rest = &rest[at..];
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if rest.len() <= size {
            *rest = &[];
            return;
        }
        *rest = &rest[size..];
        if rest.is_empty() {
            return;
        }
        *rest = rest.strip_prefix(b"\r\n").expect("the end of a chunk");
    }
    // Trailers are lines like any other, up to an empty one.
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\r\n").expect("a whole line");
        let line = &rest[..end];
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        *rest = &rest[end + 2..];
        if end == 0 {
            return;
        }
    }
}

/// Headers, a line each, of a request by a trusted proxy and by anybody: whose address counts, and
/// where a client is sent with its password.
pub(crate) fn origin(data: &[u8]) {
    let mut headers = http::HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = http::HeaderName::from_bytes(&line[..colon]);
        let value = http::HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let proxies: Network = "10.0.0.0/8".parse().expect("a network");
    let [proxy, stranger] = ["10.0.0.1", "192.0.2.7"].map(|text| text.parse().expect("an address"));
    for (peer, trusted) in
        [(proxy, vec![proxies]), (stranger, vec![proxies]), (stranger, Vec::new())]
    {
        let believed = trusted.iter().any(|network| network.contains(peer));
        let Some((client, base)) = fuzz::origin(headers.clone(), peer, trusted) else { continue };
        if !believed {
            assert_eq!(client, peer, "an address was forged");
        }
        let Some(base) = base else { continue };
        let host = base.strip_prefix("http://").or(base.strip_prefix("https://"));
        let host = host.expect("a URL");
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        assert!(!host.is_empty() && host.chars().all(plain), "{base:?}");
        if !believed {
            let named = headers.get(http::header::HOST).expect("a Host");
            assert!(named.as_bytes().eq_ignore_ascii_case(host.as_bytes()), "{base:?}");
        }
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(network) = text.parse::<Network>() {
        let base = text.split('/').next().expect("its base");
        assert!(network.contains(base.parse::<IpAddr>().expect("an address")));
    }
}

/// Where a page begins, and what the link to it makes of that.
pub(crate) fn page(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let get = |path: &str, query: &str| route::parse(&http::Method::GET, path, Some(query));
    // A query as a client might write it.
    for path in ["/v2/_catalog", "/v2/a/b/tags/list"] {
        if let Ok(Action::Catalog(page) | Action::Repo(_, Deed::Tags(page))) = get(path, &text) {
            check(&page);
        }
    }
    // The link that the server makes leads where it says.
    let query = format!("last={}&n=5", fuzz::encode(&text));
    assert!(query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'>'), "{query}");
    match get("/v2/_catalog", &query) {
        Ok(Action::Catalog(page)) => {
            assert_eq!((page.last.as_deref(), page.n), (Some(&*text), 5));
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => assert!(text.chars().any(char::is_control), "{text:?}"),
    }
}

/// The first line of a request: method, path and query, divided by blanks.
pub(crate) fn route(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, ' ');
    let Some(Ok(method)) = parts.next().map(|text| http::Method::from_bytes(text.as_bytes()))
    else {
        return;
    };
    let path = parts.next().unwrap_or_default();
    let query = parts.next();
    let parsed = route::parse(&method, path, query);
    // However it is escaped, it is the same request: gate and storage can never see two names.
    if !path.contains('%') && !path.contains(|c: char| c.is_control()) && path.starts_with('/') {
        let escaped: String = path[1..].bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(parsed, route::parse(&method, &format!("/{escaped}"), query));
    }
    match parsed {
        Ok(Action::Repo(repo, deed)) => {
            assert_eq!(RepoName::parse(repo.as_str()).as_ref(), Ok(&repo));
            assert!(
                repo.components().all(|part| !part.starts_with(['.', '_']) && !part.is_empty())
            );
            if let Deed::Tags(page) = deed {
                check(&page);
            }
        }
        Ok(Action::Catalog(page)) => check(&page),
        Ok(_) => {}
        Err(error) => {
            let told = error.to_string();
            assert!(told.len() < 2000, "a long message: {told}");
        }
    }
}

fn check(page: &Page) {
    assert!(page.n <= MAX_PAGE);
    assert!(page.last.iter().all(|last| !last.contains(char::is_control)));
}

/// A digest, a tag, a reference, a repository's name.
pub(crate) fn digest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let digest = Digest::parse(&text);
    if let Ok(digest) = &digest {
        assert_eq!(digest.as_str(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
        assert!(digest.hex().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    }
    match Reference::parse(&text) {
        Ok(Reference::Digest(found)) => assert_eq!(digest, Ok(found)),
        Ok(Reference::Tag(tag)) => assert_eq!(Tag::parse(&text), Ok(tag)),
        Err(_) => assert!(digest.is_err() && Tag::parse(&text).is_err()),
    }
    if let Ok(name) = RepoName::parse(&text) {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains("..") && !text.starts_with('/') && text.len() <= 255);
    }
    for algorithm in Algorithm::ALL {
        assert!(Digest::parse(Digest::of(algorithm, data).as_str()).is_ok());
    }
}

/// Eight bytes of a blob's size, then a `Range` or `Content-Range`.
pub(crate) fn range(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<8>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let text = String::from_utf8_lossy(text);
    if let Ok(Some(range)) = ByteRange::parse(&text, size) {
        assert!(range.first <= range.last && range.last < size);
        assert!((1..=size).contains(&range.len()));
    }
    if let Ok(range) = ContentRange::parse(&text) {
        assert!(range.first <= range.last);
        assert!(range.first.checked_add(range.len()).is_some());
    }
}

/// A manifest, with every type that it might be sent with.
pub(crate) fn manifest(data: &[u8]) {
    let mut kinds = Vec::new();
    let types = Kind::ALL.map(|kind| Some(kind.media_type()));
    for content_type in types.into_iter().chain([None]) {
        let Ok(manifest) = Manifest::parse(data, content_type) else { continue };
        assert!(content_type.is_none_or(|text| Kind::of_media_type(text) == Some(manifest.kind)));
        assert_eq!(manifest.kind.is_index(), manifest.config.is_none());
        assert!(manifest.layers.is_empty() || manifest.manifests.is_empty());
        assert!(manifest.required().count() <= manifest.references().count());
        kinds.push(manifest.kind.is_index());
    }
    // One body is never an image for one reader and an index for another.
    kinds.dedup();
    assert!(kinds.len() <= 1, "two meanings");
}
