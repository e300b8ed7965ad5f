//! layout-spec/ says what the code does: rules, paths, examples.

mod layouts;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use layouts::{broken, fixtures};
use stillage::layout::facts::Fact;
use stillage::layout::holders::Hint;
use stillage::layout::journal::Record;
use stillage::layout::uploads::Owner;
use stillage::layout::{Collected, Keys, Stamp, path};
use stillage::oci::{Algorithm, Index};
use stillage::upkeep::check::{Origin, Rule};

fn page(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("layout-spec");
    fs::read_to_string(dir.join(name)).unwrap()
}

/// The sections of a page under `###`: heading and text.
fn sections(page: &str) -> Vec<(String, String)> {
    page.split("\n### ")
        .skip(1)
        .map(|section| {
            let (heading, text) = section.split_once('\n').unwrap();
            (heading.to_owned(), text.split("\n## ").next().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn the_rules_on_the_page_are_the_rules_of_the_code() {
    let page: Vec<_> = sections(&page("rules.md"))
        .into_iter()
        .map(|(heading, text)| {
            let origin = text[..text.find(".* ").unwrap()].trim_start_matches('*').to_owned();
            for part in ["\n*Reason:* ", "\n*Repair:* "] {
                assert_eq!(text.matches(part).count(), 1, "{heading} has one {part:?}");
            }
            (heading, origin)
        })
        .collect();
    let code: Vec<_> = Rule::ALL
        .iter()
        .map(|rule| {
            let origin = match rule.origin() {
                Origin::Oci => "OCI",
                Origin::Stillage => "stillage",
            };
            (format!("{rule} ({})", rule.severity()), origin.to_owned())
        })
        .collect();
    assert_eq!(page, code);
}

#[test]
fn every_rule_has_a_tree_that_breaks_it() {
    let broken: BTreeSet<&str> = broken::all().iter().map(|sample| sample.name).collect();
    // tests/check.rs breaks it with an account that may not read.
    let unreadable = BTreeSet::from(["unreadable"]);
    let rules: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    assert_eq!(broken.union(&unreadable).copied().collect::<BTreeSet<_>>(), rules);
    assert!(fixtures().join("broken").is_dir());
}

/// The fenced blocks of a text in a language.
fn fenced<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_example_parses() {
    let mut examples = 0;
    for name in ["README.md", "tree.md", "rules.md", "writing.md"] {
        let page = page(name);
        for example in fenced(&page, "json") {
            let parsed = serde_json::from_str::<serde_json::Value>(example);
            assert!(parsed.is_ok(), "{name}: {parsed:?} in {example}");
            examples += 1;
        }
        assert_eq!(page.matches("\n```").count() % 2, 0, "{name}: a fence is not closed");
    }
    assert!(examples >= 5, "{examples} examples");
}

/// The first example in the section of a path.
fn example(heading: &str, language: &str) -> String {
    let sections = sections(&page("tree.md"));
    let (_, text) = sections.iter().find(|(found, _)| found == heading).unwrap();
    fenced(text, language)[0].to_owned()
}

#[test]
fn the_examples_are_what_the_code_reads_and_writes() {
    let layout = example("`<repository>/oci-layout`", "json");
    assert_eq!(layout.trim_end().as_bytes(), path::OCI_LAYOUT_BYTES);
    assert_eq!(example("`.stillage/version`", "text"), path::VERSION_TEXT);

    let index = example("`<repository>/index.json`", "json");
    let index = Index::parse(index.as_bytes()).unwrap();
    assert_eq!(index.tags_after(None).map(|tag| tag.as_str()).collect::<Vec<_>>(), ["1.8"]);

    let line = example("`<repository>/_log.jsonl`", "json");
    let record: Record = serde_json::from_str(&line).unwrap();
    assert_eq!(record.base, Stamp::nothing());
    assert_eq!(serde_json::to_string(&record).unwrap(), line.trim_end());

    let line = example("`<repository>/_referrers/facts.jsonl`", "json");
    let fact: Fact = serde_json::from_str(&line).unwrap();
    assert_eq!(serde_json::to_string(&fact).unwrap(), line.trim_end());

    let owner = example("`.stillage/uploads/<id>/`", "json");
    let parsed: Owner = serde_json::from_str(&owner).unwrap();
    assert_eq!(serde_json::to_string(&parsed).unwrap(), owner.trim_end());

    let hint = example("`.stillage/holders/<alg>/<hhh>`", "text");
    assert_eq!(Hint::parse(hint.trim_end(), Algorithm::Sha256).unwrap().size, 481);

    let collected = example("`.stillage/collected`", "json");
    let parsed: Collected = serde_json::from_str(&collected).unwrap();
    assert_eq!(serde_json::to_string(&parsed).unwrap(), collected.trim_end());

    let keys = Keys::parse(example("`.stillage/token-key`", "text").as_bytes()).unwrap();
    assert!(keys.current.made > keys.previous.unwrap().made);

    assert!(page("README.md").contains(&format!("`{}`", Stamp::nothing())));
}

#[test]
fn every_path_that_the_code_spells_is_on_the_page() {
    let page = page("tree.md");
    let repository = [path::OCI_LAYOUT, path::INDEX, path::BLOBS, path::LOCK, path::JOURNAL];
    for name in repository {
        assert!(page.contains(&format!("\n### `<repository>/{name}")), "{name}");
    }
    let facts = format!("<repository>/{}/{}", path::REFERRERS, path::FACTS);
    assert!(page.contains(&format!("\n### `{facts}`")));
    let room = [
        path::VERSION,
        path::POOL,
        path::HOLDERS,
        path::UPLOADS,
        path::UNREFERENCED,
        path::TRASH,
        path::QUARANTINE,
        path::GC_LOCK,
        path::COLLECTED,
        path::TOKEN_KEY,
        path::TLS,
        path::TOKEN_LOCK,
    ];
    for name in room {
        assert!(page.contains(&format!("\n### `{}/{name}", path::ROOM)), "{name}");
    }
    for name in [path::TLS_CERTIFICATE, path::TLS_KEY] {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    for name in [path::UPLOAD_DATA, path::UPLOAD_OWNER] {
        assert!(page.contains(&format!("\n- `{name}`: ")), "{name}");
    }
    assert_eq!(path::old_journal("_log.3.jsonl"), Some(3));
    assert_eq!(path::old_journal(path::JOURNAL), None);
}
