//! Views for plain web servers: they follow every commit, and whatever others did.

use std::fs::{self, File};
use std::time::Duration;

use tokio::sync::Notify;

use super::*;

#[path = "../../../tests/support/views.rs"]
mod expected;

use expected::assert_right;

impl Fixture {
    fn right(&self, name: &str) {
        assert_right(self.temp.path(), name);
    }
}

fn index_of(children: &[(Digest, usize)]) -> Bytes {
    let children = children.iter().map(|(digest, size)| (Kind::OciImage, digest, *size));
    index_of_kinds(children)
}

fn index_of_kinds<'a>(children: impl IntoIterator<Item = (Kind, &'a Digest, usize)>) -> Bytes {
    let list: Vec<String> = children
        .into_iter()
        .map(|(kind, digest, size)| {
            let media_type = kind.media_type();
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    let own = Kind::OciIndex.media_type();
    format!(r#"{{"schemaVersion":2,"mediaType":"{own}","manifests":[{}]}}"#, list.join(",")).into()
}

fn signature(subject: &Digest, note: &str) -> Bytes {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"x/y","config":{{"mediaType":"e","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":1}},"annotations":{{"k":"{note}"}}}}"#,
        Kind::OciImage.media_type(),
        sha256(b"{}"),
    )
    .into()
}

#[tokio::test]
async fn views_follow_every_commit() {
    let f = fixture();
    f.image("a/b", "one").await.unwrap();
    f.right("a/b");
    assert_eq!(
        fs::read_link(f.path("a/b/_manifests/one.oci-image")).unwrap(),
        PathBuf::from("..").join(path::blob(&sha256(&image(b"{}", b"one"))))
    );
    // Another kind under the same tag: the old one goes.
    let one = image(b"{}", b"one");
    let index = index_of(&[(sha256(&one), one.len())]);
    f.push("a/b", tag("one"), index.clone()).await.unwrap();
    f.right("a/b");
    assert!(!f.path("a/b/_manifests/one.oci-image").is_symlink());
    // Children that have no entry of their own.
    f.registry
        .delete_manifest(&repo("a/b"), &Reference::Digest(sha256(&one)), &Actor::default())
        .await
        .unwrap();
    f.right("a/b");
    let child = format!("a/b/_manifests/sha256/{}.oci-image", sha256(&one).hex());
    assert!(f.path(&child).is_symlink());
    // Referrers, of what is there and of what is not.
    let other = sha256(b"nothing");
    for (subject, note) in [(sha256(&index), "1"), (sha256(&index), "2"), (other, "3")] {
        let bytes = signature(&subject, note);
        let by = Reference::Digest(sha256(&bytes));
        f.push("a/b", by.clone(), bytes).await.unwrap();
        f.right("a/b");
        if note == "2" {
            f.registry.delete_manifest(&repo("a/b"), &by, &Actor::default()).await.unwrap();
            f.right("a/b");
        }
    }
    f.registry.delete_manifest(&repo("a/b"), &tag("one"), &Actor::default()).await.unwrap();
    f.right("a/b");
    let by = Reference::Digest(sha256(&index));
    f.registry.delete_manifest(&repo("a/b"), &by, &Actor::default()).await.unwrap();
    f.right("a/b");
    assert!(!f.path(&child).is_symlink());
}

/// Whatever goes with a deletion goes, and nobody looks at the rest: what is wrong there stays so.
#[tokio::test]
async fn a_deletion_takes_its_own_views_and_no_others() {
    let f = fixture();
    f.image("a", "stays").await.unwrap();
    let delete = async |digest: &Digest| {
        let by = Reference::Digest(digest.clone());
        f.registry.delete_manifest(&repo("a"), &by, &Actor::default()).await.unwrap();
    };
    let one = image(b"{}", b"one");
    let signed = signature(&sha256(&one), "inside");
    let inner = index_of(&[(sha256(&one), one.len()), (sha256(&signed), signed.len())]);
    let outer = index_of_kinds([
        (Kind::OciIndex, &sha256(&inner), inner.len()),
        (Kind::OciImage, &sha256(&one), one.len()),
    ]);
    for round in 0..2 {
        f.image("a", "one").await.unwrap();
        f.push("a", Reference::Digest(sha256(&signed)), signed.clone()).await.unwrap();
        f.push("a", tag("inner"), inner.clone()).await.unwrap();
        f.push("a", tag("outer"), outer.clone()).await.unwrap();
        f.right("a");
        // The first deletion goes over everything; from then on a renewal would show.
        delete(&sha256(&signed)).await;
        f.right("a");
        let planted = f.path("a/_manifests/planted.oci-image");
        std::os::unix::fs::symlink("nowhere", &planted).unwrap();
        let right = || {
            fs::remove_file(&planted).unwrap();
            f.right("a");
            std::os::unix::fs::symlink("nowhere", &planted).unwrap();
        };
        let order = match round {
            0 => [&one, &inner, &outer],
            _ => [&outer, &one, &inner],
        };
        for gone in order {
            delete(&sha256(gone)).await;
            right();
        }
        fs::remove_file(&planted).unwrap();
        let list = format!("a/_referrers/sha256/{}.json", sha256(&one).hex());
        assert!(!f.path(&list).exists());
        assert_eq!(f.tags("a").await, ["stays"]);
    }
}

/// An index brings manifests that nobody put there as manifests: what they refer to is listed.
#[tokio::test]
async fn what_an_index_contains_refers_too() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let signed = signature(&sha256(&image(b"{}", b"one")), "inside");
    f.blob("a", &signed).await;
    let outer = index_of(&[(sha256(&signed), signed.len())]);
    f.push("a", tag("all"), outer).await.unwrap();
    f.right("a");
    let list = format!("a/_referrers/sha256/{}.json", sha256(&image(b"{}", b"one")).hex());
    assert!(fs::read_to_string(f.path(&list)).unwrap().contains(sha256(&signed).hex()));
}

/// Of a manifest whose file and fact somebody removed nobody knows what it referred to: when it is deleted,
/// by itself or with the index that contains it, all lists are compared.
#[tokio::test]
async fn what_is_deleted_is_in_no_list_though_nothing_is_known_of_it() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let one = sha256(&image(b"{}", b"one"));
    let (alone, inside) = (signature(&one, "alone"), signature(&one, "inside"));
    let outer = index_of(&[(sha256(&inside), inside.len())]);
    f.push("a", Reference::Digest(sha256(&alone)), alone.clone()).await.unwrap();
    f.blob("a", &inside).await;
    f.push("a", tag("all"), outer.clone()).await.unwrap();
    f.right("a");
    let list = f.path(&format!("a/_referrers/sha256/{}.json", one.hex()));
    for (gone, with) in [(&alone, &alone), (&inside, &outer)] {
        assert!(fs::read_to_string(&list).unwrap().contains(sha256(gone).hex()));
        fs::remove_file(f.blob_path("a", &sha256(gone))).unwrap();
        // Nobody has to write down what was learnt from the others.
        let _ = fs::remove_file(f.path("a/_referrers/facts.jsonl"));
        let by = Reference::Digest(sha256(with));
        f.reopened().delete_manifest(&repo("a"), &by, &Actor::default()).await.unwrap();
        f.right("a");
    }
    assert!(!list.exists());
}

#[tokio::test]
async fn views_of_what_others_did_are_renewed_when_the_repository_is_opened() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("a", "two").await.unwrap();
    let open = async |registry: &Registry, name: &str| {
        registry.tags(&repo(name), None, 10, &Account::default()).await.unwrap();
        registry.renew_views().await;
    };
    // Moved: the list of tags has the name in it.
    fs::rename(f.path("a"), f.path("b")).unwrap();
    open(&f.registry, "b").await;
    f.right("b");
    // Copied.
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-a").arg(f.path("b")).arg(f.path("c")).status().unwrap().success());
    open(&f.registry, "c").await;
    f.right("c");
    // Written by another tool.
    let text = fs::read_to_string(f.path("c/index.json")).unwrap();
    fs::write(f.path("c/index.json"), text.replace(r#""two""#, r#""docker.io/x/y:three""#))
        .unwrap();
    open(&f.registry, "c").await;
    f.right("c");
    assert!(f.path("c/_manifests/three.oci-image").is_symlink());
    // Taken away, as a whole and in part, and lied about: whoever opens it first compares.
    for lost in ["c/_manifests", "c/_tags.json", "c/_manifests/three.oci-image"] {
        let path = f.path(lost);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap();
        open(&f.reopened(), "c").await;
        f.right("c");
    }
    std::os::unix::fs::symlink("../index.json", f.path("c/_manifests/evil.oci-image")).unwrap();
    fs::write(f.path("c/_tags.json"), "{}").unwrap();
    // What is no view is left alone.
    fs::write(f.path("c/_manifests/README"), "mine").unwrap();
    for name in ["notes", ".mine", "x y.oci-image", "sha256/notes.oci-image", "sha256/notes"] {
        std::os::unix::fs::symlink("mine", f.path("c/_manifests").join(name)).unwrap();
    }
    open(&f.reopened(), "c").await;
    assert_eq!(fs::read_to_string(f.path("c/_manifests/README")).unwrap(), "mine");
    for name in ["notes", ".mine", "x y.oci-image", "sha256/notes.oci-image", "sha256/notes"] {
        let link = f.path("c/_manifests").join(name);
        assert!(link.is_symlink(), "{name}");
        fs::remove_file(link).unwrap();
    }
    f.right("c");
    // And the next commit goes on from there.
    f.image("c", "four").await.unwrap();
    f.right("c");
}

#[tokio::test]
async fn a_push_after_another_tool_makes_all_views() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("a", "two").await.unwrap();
    let text = fs::read_to_string(f.path("a/index.json")).unwrap();
    fs::write(f.path("a/index.json"), text.replace(r#""two""#, r#""three""#)).unwrap();
    f.image("a", "four").await.unwrap();
    f.right("a");
    assert_eq!(f.tags("a").await, ["four", "one", "three"]);
}

#[tokio::test]
async fn without_views_there_are_none_and_old_ones_go() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    fs::write(f.path("a/_manifests/README"), "mine").unwrap();
    let settings = Settings { views: Views::None, ..Settings::default() };
    let without =
        Fixture { registry: Registry::open(f.temp.path(), settings).unwrap(), temp: f.temp };
    without.image("a", "two").await.unwrap();
    without.image("b", "one").await.unwrap();
    without.registry.renew_views().await;
    assert!(!without.path("b/_manifests").exists() && !without.path("b/_tags.json").exists());
    assert!(!without.path("a/_tags.json").exists());
    assert_eq!(left(&without, "a"), [without.path("a/_manifests/README")]);
    assert_eq!(without.tags("a").await, ["one", "two"]);
}

/// What is there of a repository's views.
fn left(f: &Fixture, name: &str) -> Vec<PathBuf> {
    let mut todo = vec![f.path(name).join("_manifests"), f.path(name).join("_referrers/sha256")];
    let mut left = Vec::new();
    while let Some(path) = todo.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => todo.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) if path.is_symlink() || path.is_file() => left.push(path),
            Err(_) => {}
        }
    }
    left.extend(Some(f.path(name).join("_tags.json")).filter(|path| path.exists()));
    left
}

#[tokio::test]
async fn what_is_not_for_everybody_has_no_views() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let index = f.path("a/index.json");
    std::os::unix::fs::chown(&index, Some(4711), Some(4711)).unwrap();
    chmod(&index, 0o600);
    let opened = f.reopened();
    opened.tags(&repo("a"), None, 10, &Account::default()).await.unwrap();
    opened.renew_views().await;
    assert_eq!(left(&f, "a"), Vec::<PathBuf>::new());
}

/// Who may only enter a directory can open what he knows the name of, and views have names that anybody
/// can guess.
#[tokio::test]
async fn views_are_there_where_everybody_may_enter_and_list() {
    let f = fixture();
    let none = Vec::<PathBuf>::new();
    f.image("team/app", "one").await.unwrap();
    f.image("team/app", "two").await.unwrap();
    f.right("team/app");
    let asked = async |f: &Fixture| {
        f.registry.way(&repo("team/app"), false).unwrap();
        f.registry.renew_views().await;
    };
    asked(&f).await;
    for (dir, closed, open) in [
        ("team/app", [0o711, 0o751, 0o754, 0o700], 0o755),
        ("team", [0o750; 4], 0o711),
        ("", [0o700; 4], 0o711),
    ] {
        for mode in closed {
            chmod(&f.path(dir), mode);
            asked(&f).await;
            assert_eq!(left(&f, "team/app"), none, "{dir} {mode:o}");
            // Nor does a push make any, and nobody has to come by.
            f.image("team/app", &format!("pushed-{mode:o}")).await.unwrap();
            assert_eq!(left(&f, "team/app"), none, "{dir} {mode:o}");
            chmod(&f.path(dir), open);
            asked(&f).await;
            f.right("team/app");
        }
    }
    // A push finds them there of which nobody was told: nothing says any more that they are right.
    chmod(&f.path("team/app"), 0o711);
    f.image("team/app", "three").await.unwrap();
    assert!(!f.path("team/app/_manifests/.of").is_symlink());
    f.registry.renew_views().await;
    assert_eq!(left(&f, "team/app"), none);
    // An account that an ACL lets in is not everybody.
    let mut acl = std::process::Command::new("setfacl");
    assert!(acl.args(["-m", "u:33:rx"]).arg(f.path("team/app")).status().unwrap().success());
    f.image("team/app", "four").await.unwrap();
    asked(&f).await;
    assert_eq!(left(&f, "team/app"), none);
}

/// `cp -a` takes a directory's names as they come: what it is about to make must not be there.
#[tokio::test]
async fn nothing_is_made_in_a_repository_whose_blobs_are_still_on_their_way() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let names = |name: &str| -> Vec<String> {
        let entries = fs::read_dir(f.path(name)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let look = async || {
        f.registry.may_have_changed(&layout::Changed {
            names: [repo("b")].into(),
            ..layout::Changed::nothing(std::time::SystemTime::now())
        });
        f.registry.renew_views().await;
    };
    fs::create_dir_all(f.path("b/blobs/sha256")).unwrap();
    for name in ["index.json", "oci-layout"] {
        fs::copy(f.path("a").join(name), f.path("b").join(name)).unwrap();
    }
    let manifest = image(b"{}", b"one");
    for bytes in [&manifest[..], b"{}", b"one"] {
        look().await;
        assert_eq!(names("b"), ["blobs", "index.json", "oci-layout"]);
        // Begun, and not at its end.
        let blob = f.blob_path("b", &sha256(bytes));
        fs::write(&blob, &bytes[1..]).unwrap();
        look().await;
        assert_eq!(names("b"), ["blobs", "index.json", "oci-layout"]);
        fs::write(&blob, bytes).unwrap();
    }
    look().await;
    f.right("b");
}

/// Ten thousand tags of another tool's.
fn put_many(f: &Fixture, name: &str) {
    let entry = |n: usize| {
        let digest = sha256(&n.to_le_bytes());
        let (media_type, tag) = (Kind::OciImage.media_type(), "org.opencontainers.image.ref.name");
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{digest}","size":8,"annotations":{{"{tag}":"t{n}"}}}}"#
        )
    };
    let all: Vec<_> = (0..10_000).map(entry).collect();
    fs::create_dir_all(f.path(name).join("blobs/sha256")).unwrap();
    fs::copy(f.path("few/oci-layout"), f.path(name).join("oci-layout")).unwrap();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, all.join(","));
    fs::write(f.path(name).join("index.json"), index).unwrap();
}

fn sparse() -> Fixture {
    let (f, settings) = (fixture(), Settings { allow_sparse: true, ..Settings::default() });
    Fixture { registry: Registry::open(f.temp.path(), settings).unwrap(), temp: f.temp }
}

/// To give memory back is work, too: it is not done for the views of one image.
#[tokio::test]
async fn much_memory_is_taken_by_many_views_that_are_made_compared_or_removed() {
    let f = sparse();
    let look = async |f: &Fixture| {
        f.registry.inner.opened.add_all();
        f.registry.renew_views().await;
        f.registry.inner.opened.took_much()
    };
    f.image("few", "one").await.unwrap();
    fs::remove_file(f.path("few/_manifests/.of")).unwrap();
    assert!(!look(&f).await);
    assert!(f.path("few/_manifests/.of").is_symlink());
    put_many(&f, "many");
    assert!(look(&f).await, "they were made");
    assert!(f.path("many/_manifests/.of").is_symlink());
    assert!(!look(&f).await, "they are known");
    // In a commit, after another tool.
    let index = fs::read_to_string(f.path("many/index.json")).unwrap();
    fs::write(f.path("many/index.json"), format!("{index}\n")).unwrap();
    f.image("many", "new").await.unwrap();
    assert!(f.registry.inner.opened.took_much(), "they were renewed");
    let again = Settings { views: Views::None, ..Settings::default() };
    let f = Fixture { registry: Registry::open(f.temp.path(), again).unwrap(), temp: f.temp };
    assert!(look(&f).await, "they were removed");
    assert_eq!(left(&f, "many"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn memory_is_given_back_after_many_views() {
    static GIVEN: Notify = Notify::const_new();
    let f = sparse();
    f.image("few", "one").await.unwrap();
    put_many(&f, "many");
    tokio::select! {
        () = f.registry.keep_views(|| GIVEN.notify_one()) => unreachable!("it never ends"),
        given = tokio::time::timeout(Duration::from_secs(60), GIVEN.notified()) => given.unwrap(),
    }
    assert!(f.path("many/_manifests/.of").is_symlink());
}

#[tokio::test]
async fn views_that_are_to_go_go_in_turns_and_a_commit_waits_for_none() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    // More than go in one turn.
    let many = 50_000;
    for number in 0..many {
        let link = f.path("a/_manifests").join(format!("t{number}.oci-image"));
        std::os::unix::fs::symlink("../blobs/sha256/00", link).unwrap();
    }
    let settings = Settings { views: Views::None, ..Settings::default() };
    let without =
        Fixture { registry: Registry::open(f.temp.path(), settings).unwrap(), temp: f.temp };
    without.image("a", "two").await.unwrap();
    assert!(!without.path("a/_manifests/.of").is_symlink());
    assert!(left(&without, "a").len() > many, "all went within the push");
    // Whoever wants the lock meanwhile has it before all are gone.
    let (lock, repo) = (File::open(without.path("a/.lock")).unwrap(), without.path("a"));
    let waits = tokio::task::spawn_blocking(move || {
        while lock.try_lock().is_ok() {
            lock.unlock().unwrap();
        }
        lock.lock().unwrap();
        fs::read_dir(repo.join("_manifests")).map_or(0, Iterator::count)
    });
    let ((), waited) = tokio::join!(without.registry.renew_views(), waits);
    assert!(waited.unwrap() > 0, "all went in one turn");
    assert_eq!(left(&without, "a"), Vec::<PathBuf>::new());
}

/// Without a push and without a question.
#[tokio::test]
async fn a_server_without_views_removes_them_from_its_start_on() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("b/c", "one").await.unwrap();
    let settings = Settings { views: Views::None, ..Settings::default() };
    let without =
        Fixture { registry: Registry::open(f.temp.path(), settings).unwrap(), temp: f.temp };
    without.registry.inner.opened.add_all();
    without.registry.renew_views().await;
    for name in ["a", "b/c"] {
        assert_eq!(left(&without, name), Vec::<PathBuf>::new());
    }
}
