//! Request lines, good and bad.

use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ID: &str = "0123456789abcdef0123456789abcdef";

fn get(target: &str) -> Result<Action, RouteError> {
    of("GET", target)
}

fn of(method: &str, target: &str) -> Result<Action, RouteError> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    parse(&method.parse().unwrap(), path, query)
}

fn repo(action: Result<Action, RouteError>) -> (String, Deed) {
    match action {
        Ok(Action::Repo(name, deed)) => (name.as_str().to_owned(), deed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_matched_from_the_end() {
    for (target, name) in [
        ("/v2/a/tags/list", "a"),
        ("/v2/a/b/c/tags/list", "a/b/c"),
        ("/v2/tags/list/tags/list", "tags/list"),
        ("/v2/a/manifests/tags/list", "a/manifests"),
        ("/v2/privat%65/x/tags/list", "private/x"),
        ("/v2/a%2fb/tags/list", "a/b"),
    ] {
        let (found, deed) = repo(get(target));
        assert_eq!(found, name, "{target}");
        assert!(matches!(deed, Deed::Tags(_)), "{target}");
    }
    let (name, deed) = repo(get("/v2/a/manifests/manifests/v1"));
    assert_eq!(name, "a/manifests");
    assert!(matches!(deed, Deed::ReadManifest { head: false, .. }));
    let (name, deed) = repo(of("HEAD", &format!("/v2/referrers/x/blobs/{DIGEST}?ns=docker.io")));
    assert_eq!(name, "referrers/x");
    assert!(matches!(deed, Deed::ReadBlob { head: true, .. }));
}

#[test]
fn uploads_begin_in_four_ways() {
    let post = |query: &str| of("POST", &format!("/v2/a/blobs/uploads/{query}"));
    let begin = |query: &str| repo(post(query)).1;
    assert_eq!(begin(""), Deed::BeginUpload { algorithm: None });
    let long = Some(Algorithm::Sha512);
    assert_eq!(begin("?digest-algorithm=sha512"), Deed::BeginUpload { algorithm: long });
    let digest = Digest::parse(DIGEST).unwrap();
    assert_eq!(begin(&format!("?digest={DIGEST}")), Deed::PutBlob(digest.clone()));
    let escaped = DIGEST.replace(':', "%3A");
    assert_eq!(
        begin(&format!("?mount={escaped}&from=x%2Fy")),
        Deed::Mount {
            digest: digest.clone(),
            from: Some(RepoName::parse("x/y").unwrap()),
            algorithm: None
        }
    );
    assert!(matches!(begin(&format!("?mount={DIGEST}")), Deed::Mount { from: None, .. }));
    assert!(matches!(post("?digest-algorithm=md5"), Err(RouteError::Digest(_))));
    assert!(matches!(post(&format!("?mount={DIGEST}&from=A")), Err(RouteError::Name(_))));
}

#[test]
fn sessions_have_ids_that_we_gave_out() {
    let at = |method, id: &str| of(method, &format!("/v2/a/blobs/uploads/{id}"));
    let id = UploadId::parse(ID).unwrap();
    assert_eq!(repo(at("PATCH", ID)).1, Deed::AppendUpload(id.clone()));
    assert_eq!(repo(at("DELETE", ID)).1, Deed::CancelUpload(id.clone()));
    let with_digest = format!("{ID}?digest={DIGEST}");
    assert_eq!(repo(at("GET", &with_digest)).1, Deed::UploadStatus(id));
    assert!(matches!(repo(at("PUT", &with_digest)).1, Deed::FinishUpload { .. }));
    assert_eq!(at("PUT", ID), Err(RouteError::NoDigest));
    for bad in ["x", "0123", &"a".repeat(4096), &ID.to_uppercase()] {
        assert!(matches!(at("PATCH", bad), Err(RouteError::Upload(_))), "{bad}");
    }
    assert!(matches!(at("PATCH", "..%2f..%2fx"), Err(RouteError::Dots(_))));
    assert!(matches!(at("PATCH", "%00"), Err(RouteError::Path(_))));
    let twice = format!("{ID}?digest={DIGEST}&digest=sha256:00");
    assert_eq!(at("PUT", &twice), Err(RouteError::Repeated("digest")));
}

#[test]
fn pages_are_clamped_or_refused() {
    let n = |n: &str| match get(&format!("/v2/_catalog?n={n}&last=a/b")) {
        Ok(Action::Catalog(page)) => Ok(page.n),
        Err(error) => Err(error),
        other => panic!("{other:?}"),
    };
    assert_eq!(n("0"), Ok(0));
    assert_eq!(n("7"), Ok(7));
    for many in ["1001", "2147483648", "9223372036854775808", &"9".repeat(99)] {
        assert_eq!(n(many), Ok(MAX_PAGE), "{many}");
    }
    for bad in ["", "-1", "abc", "1e3", "%2b1", " 1"] {
        assert!(matches!(n(bad), Err(RouteError::PageSize(_))), "{bad}");
    }
    let page = Page { n: MAX_PAGE, last: None };
    assert_eq!(get("/v2/_catalog"), Ok(Action::Catalog(page)));
}

#[test]
fn what_is_not_ours_is_told_apart() {
    for path in ["/v1/search", "/v2/x", "/v2/a/tags", "/v3/", "*", "", "/v2/a/tags/list/"] {
        assert_eq!(get(path), Err(RouteError::NotFound), "{path}");
    }
    for (method, path, allowed) in [
        ("POST", "/v2/", "GET, HEAD"),
        ("DELETE", "/token", "GET, POST"),
        ("PATCH", "/v2/a/manifests/b", "GET, HEAD, PUT, DELETE"),
        ("GET", "/v2/a/blobs/uploads/", "POST"),
        ("BREW", "/v2/a/tags/list", "GET, HEAD"),
    ] {
        match of(method, path) {
            Err(RouteError::Method { allow, .. }) => assert_eq!(allow, allowed, "{path}"),
            other => panic!("{method} {path}: {other:?}"),
        }
    }
}

#[test]
fn malformed_names_digests_and_tags_say_so() {
    for path in [
        "/v2/A/tags/list",
        "/v2//tags/list",
        "/v2/_catalog/tags/list",
        "/v2/tags/list",
        "/v2/a/blobs/uploads/b/tags/list",
        "/v2/a//b/tags/list",
    ] {
        assert!(matches!(get(path), Err(RouteError::Name(_))), "{path}");
    }
    for path in ["/v2/a/../b/tags/list", "/v2/a/%2e%2e/tags/list", "/v2/a/%2E/tags/list", "/.."] {
        assert!(matches!(get(path), Err(RouteError::Dots(_))), "{path}");
    }
    assert!(matches!(get("/v2/a/blobs/sha256:00"), Err(RouteError::Digest(_))));
    assert!(matches!(get("/v2/a/manifests/sha256:x"), Err(RouteError::Digest(_))));
    assert!(matches!(get("/v2/a/manifests/.x"), Err(RouteError::Tag(_))));
    assert!(matches!(of("PUT", "/v2/a/manifests/x?tag=a/b"), Err(RouteError::Tag(_))));
    assert!(matches!(get("/v2/a/tags/list?last=%0a"), Err(RouteError::Query(_))));
}

#[test]
fn media_types_keep_their_plus() {
    for raw in ["a/b+json", "a%2Fb%2Bjson"] {
        let (_, deed) = repo(get(&format!("/v2/a/referrers/{DIGEST}?artifactType={raw}")));
        match deed {
            Deed::Referrers { artifact_type, .. } => {
                assert_eq!(artifact_type.unwrap(), "a/b+json")
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(method in "[A-Z]{1,8}", path in "\\PC{0,60}", query in "\\PC{0,60}") {
        let _ = parse(&method.parse().unwrap(), &path, Some(&query));
    }

    #[test]
    fn every_name_comes_through(name in "[a-z0-9]{1,5}(/[a-z0-9]{1,4}){0,4}", tag in "[a-z0-9_][a-zA-Z0-9._-]{0,10}") {
        prop_assume!(RepoName::parse(&name).is_ok());
        let (found, deed) = repo(get(&format!("/v2/{name}/manifests/{tag}")));
        prop_assert_eq!(found, name);
        let wanted = Reference::Tag(Tag::parse(&tag).unwrap());
        prop_assert_eq!(deed, Deed::ReadManifest { reference: wanted, head: false });
    }

    #[test]
    fn escaped_or_not_is_the_same(path in "/v2/[a-z/]{1,12}/(tags/list|manifests/x)") {
        let escaped: String = path.bytes().map(|b| format!("%{b:02x}")).collect();
        // The first slash stands as it is: a request target begins with one.
        let escaped = format!("/{}", &escaped[3..]);
        prop_assert_eq!(get(&path), get(&escaped));
    }
}
