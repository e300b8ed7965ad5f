//! `stillage check`: it changes nothing, follows nothing, hashes nothing twice, reports what is
//! wrong and nothing that only moved.

mod layouts;

#[path = "check/beside.rs"]
mod beside;
#[path = "check/command.rs"]
mod command;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use layouts::repo::{IMAGE, Repo};
use layouts::room::with_room;
use layouts::{Files, broken, disk, findings, findings_with, valid};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use stillage::layout::Account;
use stillage::oci::{Algorithm, Digest, RepoName};
use stillage::registry::{Registry, Settings};
use stillage::upkeep::check::{Options, Rule};

#[test]
fn checking_changes_nothing() {
    let sound = valid::all().into_iter().map(|(sample, ..)| sample);
    for sample in sound.chain(broken::all()) {
        let temp = sample.place();
        let before = disk::fingerprint(temp.path());
        findings(temp.path());
        assert_eq!(disk::fingerprint(temp.path()), before, "{}", sample.name);
    }
}

/// On a mirror, and after the machine's start, nothing says of which index.json views are.
#[test]
fn views_of_which_nothing_is_known_are_compared() {
    let temp = disk::place(&valid::written());
    let (root, name) = (temp.path(), RepoName::parse("team/app").unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let registry = Registry::open(root, Settings::default()).unwrap();
    runtime.block_on(async {
        registry.tags(&name, None, 1, &Account::default()).await.unwrap();
        registry.renew_views().await;
    });
    let found = || -> Vec<_> {
        let (found, _) = findings(root);
        found.into_iter().map(|finding| (finding.rule, finding.message)).collect()
    };
    let repo = root.join("team/app");
    let manifests = repo.join("_manifests");
    fs::remove_file(manifests.join(".of")).unwrap();
    assert_eq!(found(), []);
    let is_tag = |path: &PathBuf| path.is_symlink();
    let mut names = fs::read_dir(&manifests).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(names.find(is_tag).expect("a tag")).unwrap();
    let stale = found();
    assert!(
        matches!(&stale[..], [(Rule::ViewsStale, why)] if why.contains("nothing says")),
        "{stale:?}"
    );
    // Somebody works on it: they may be right in a moment.
    let lock = fs::File::open(repo.join(".lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(found(), []);
}

/// An entry that was taken from the repository's ACL must not live on in what lies in it.
#[test]
fn an_acl_inside_is_no_wider_than_the_repositorys() {
    let temp = disk::place(&valid::written());
    let app = temp.path().join("team/app");
    let setfacl = |acl: &str, path: &Path| {
        assert!(Command::new("setfacl").args(["-m", acl]).arg(path).status().unwrap().success());
    };
    fs::set_permissions(&app, Permissions::from_mode(0o750)).unwrap();
    for name in ["blobs", "blobs/sha256", "_referrers"] {
        let inner = app.join(name);
        if !inner.exists() {
            continue;
        }
        fs::set_permissions(&inner, Permissions::from_mode(0o750)).unwrap();
        setfacl("u:4242:rwx", &inner);
    }
    let blobs = app.join("blobs/sha256");
    assert_reported(temp.path(), &blobs, Rule::InnerWider);
    setfacl("u:4242:rwx", &app);
    let wider = findings(temp.path()).0.into_iter().filter(|found| found.rule == Rule::InnerWider);
    assert_eq!(wider.count(), 0);
}

/// Everything that a server writes, replaced in turn by a symlink to itself and by a FIFO, which
/// would hold whoever opens it.
#[test]
fn symlinks_and_special_files_are_reported_wherever_they_stand() {
    let temp = disk::place(&valid::written());
    let root = temp.path();
    let repositories = ["team", "team/app", "team/other"].map(|name| root.join(name));
    let aside = root.join(".aside");
    let mut tried = 0;
    for path in disk::walk(root) {
        fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        let rule = if repositories.contains(&path) {
            Rule::DirectorySymlinked
        } else {
            Rule::WrongFileType
        };
        assert_reported(root, &path, rule);
        fs::remove_file(&path).unwrap();
        if rule == Rule::WrongFileType {
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
            assert_reported(root, &path, rule);
            fs::remove_file(&path).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
        tried += 1;
    }
    assert!(tried > 60, "{tried} paths");
    assert_eq!(findings(root).0, []);
}

fn assert_reported(root: &Path, path: &Path, rule: Rule) {
    let (found, _) = findings(root);
    let path = path.strip_prefix(root).unwrap();
    let reported = found.iter().any(|finding| finding.rule == rule && finding.path == path);
    assert!(reported, "{} is no {rule} in {found:#?}", path.display());
}

#[test]
fn what_cannot_be_read_is_reported() {
    let temp = disk::place(&valid::image());
    let layout = temp.path().join("app/oci-layout");
    disk::set_mode(&layout, 0);
    let root = temp.path().to_owned();
    // Root may read everything, so a thread of its own becomes nobody.
    let nobody = move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        findings(&root).0
    };
    let found = std::thread::spawn(nobody).join().unwrap();
    let found: Vec<_> = found.into_iter().map(|f| (f.rule, f.path)).collect();
    assert_eq!(found, [(Rule::Unreadable, PathBuf::from("app/oci-layout"))]);
}

#[test]
fn an_inode_is_hashed_once() {
    let mut files = Files::new();
    for number in 0..10 {
        let mut repo = Repo::new(&format!("team/app{number}"));
        let image = repo.image("the same everywhere");
        repo.tag(&image, "1");
        files.extend(repo.finish());
    }
    let content: BTreeMap<_, u64> = files
        .iter()
        .filter_map(|(name, bytes)| Some((name.split_once("/blobs/")?.1, bytes.len() as u64)))
        .collect();
    let once: u64 = content.values().sum();

    let copies = disk::place(&files);
    assert_eq!(findings(copies.path()).1.bytes_hashed, 10 * once);
    let shared = disk::place(&with_room(files));
    assert_eq!(findings(shared.path()).1.bytes_hashed, once);
    // A snapshot has the links and no pool.
    fs::remove_dir_all(shared.path().join(".stillage")).unwrap();
    let (found, summary) = findings(shared.path());
    assert_eq!((found.len(), summary.blobs, summary.bytes_hashed), (0, 30, once));
}

#[test]
fn a_damaged_inode_is_reported_under_each_of_its_names() {
    let temp = disk::place(&valid::written());
    let shared = Digest::of(Algorithm::Sha256, b"layer of one\n");
    let path = temp.path().join("team/app/blobs/sha256").join(shared.hex());
    disk::set_mode(&path, 0o644);
    fs::write(&path, b"layer of two\n").unwrap();
    disk::set_mode(&path, 0o444);
    let found: Vec<_> = findings(temp.path()).0.into_iter().map(|f| (f.rule, f.path)).collect();
    let hex = shared.hex();
    assert_eq!(
        found,
        [
            (Rule::PoolDigestMismatch, format!(".stillage/pool/sha256/{}/{hex}", &hex[..2]).into()),
            (Rule::BlobDigestMismatch, format!("team/app/blobs/sha256/{hex}").into()),
            (Rule::BlobDigestMismatch, format!("team/other/blobs/sha256/{hex}").into()),
        ]
    );
}

/// Any file of a tree cut short, lengthened, or with a byte changed.
#[test]
fn damage_anywhere_is_no_panic_and_damaged_content_is_found() {
    let files = valid::written();
    for (name, bytes) in &files {
        let half = bytes[..bytes.len() / 2].to_vec();
        let longer = [&bytes[..], b"\0{\"more\":"].concat();
        let mut flipped = bytes.clone();
        if let Some(byte) = flipped.get_mut(bytes.len() / 2) {
            *byte ^= 0x55;
        }
        for damaged in [half, longer, flipped] {
            let mut files = files.clone();
            if files.insert(name.clone(), damaged.clone()).as_ref() == Some(&damaged) {
                continue;
            }
            let temp = disk::place(&files);
            let (found, summary) = findings(temp.path());
            let content = name.contains("/blobs/") || name.contains("/pool/");
            assert!(!content || summary.is_damaged(), "{name}: {found:?}");
        }
    }
}

#[test]
fn a_sparse_registry_may_lack_what_manifests_name() {
    let sparse = Options { allow_sparse: true, ..Options::default() };
    for name in ["manifest-missing", "blob-missing"] {
        let sample = broken::all().into_iter().find(|sample| sample.name == name).unwrap();
        let temp = sample.place();
        assert_eq!(findings_with(temp.path(), sparse.clone()).0, [], "{name}");
        // What index.json itself names is served by its digest, and must be there.
        let index = fs::read_to_string(temp.path().join("app/index.json")).unwrap();
        let hex = index.split("sha256:").nth(1).unwrap()[..64].to_owned();
        fs::remove_file(temp.path().join("app/blobs/sha256").join(hex)).unwrap();
        let (found, _) = findings_with(temp.path(), sparse.clone());
        assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), [Rule::ManifestMissing]);
    }
}

/// Pushes, deletions of tags and manifests, and deletions of blobs, while the tree is checked.
#[test]
fn what_one_manifest_can_do_without_is_missed_by_another() {
    let mut repo = Repo::new("app");
    let mut needs = repo.image_body("one");
    let mut elsewhere = needs.clone();
    elsewhere["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    repo.drop_file(&Repo::path(&needs["layers"][0]));
    // The order of the entries decides which is looked at first.
    for number in 0..2 {
        needs["annotations"] = json!({"number": format!("{number}")});
        let bodies = if number == 0 { [&elsewhere, &needs] } else { [&needs, &elsewhere] };
        repo.entries.clear();
        for body in bodies {
            let image = repo.json(IMAGE, body);
            repo.untagged(&image);
        }
        let mut tree = Repo::new("app");
        tree.files.clone_from(&repo.files);
        tree.entries.clone_from(&repo.entries);
        let (found, _) = findings(disk::place(&tree.finish()).path());
        let rules: Vec<Rule> = found.iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, [Rule::BlobMissing], "{found:?}");
    }
}

#[test]
fn damage_that_two_manifests_name_is_told_once() {
    let mut repo = Repo::new("app");
    let mut needs = repo.image_body("one");
    needs["layers"][0]["size"] = json!(1);
    let mut elsewhere = needs.clone();
    elsewhere["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    // Of what lies elsewhere nothing is asked.
    for (bodies, expected) in [
        (vec![&elsewhere], vec![]),
        (vec![&elsewhere, &needs, &elsewhere], vec![Rule::BlobSizeMismatch]),
    ] {
        let mut tree = Repo::new("app");
        tree.files.clone_from(&repo.files);
        for body in bodies {
            let image = tree.json(IMAGE, body);
            tree.untagged(&image);
        }
        let (found, _) = findings(disk::place(&tree.finish()).path());
        let rules: Vec<Rule> = found.iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, expected, "{found:?}");
    }
}

#[test]
fn short_lines_that_name_a_long_index_cost_no_memory() {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    repo.tag(&image, "1.8");
    let child = |n: usize| {
        let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        json!({"mediaType": IMAGE, "digest": digest.as_str(), "size": n})
    };
    let index = repo.index(&(0..24_000).map(child).collect::<Vec<_>>());
    let line = json!({"digest": index["digest"], "mediaType": "", "size": 1});
    repo.file("_referrers/facts.jsonl", format!("{line}\n").repeat(130).as_bytes());
    let temp = disk::place(&repo.finish());
    // Thirty of what such lines stand for are more than this.
    let check = [env!("CARGO_BIN_EXE_stillage"), "check", "--quick"];
    let mut command = Command::new("prlimit");
    command.arg("--data=200000000").args(check).arg(temp.path()).env_remove("STILLAGE_ROOT");
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code().is_some() && told.contains("and 30 more"), "{output:?}");
}
