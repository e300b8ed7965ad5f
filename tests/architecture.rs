//! The rules of the code itself: who may import whom, and what every file has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, and what each may use: the arrows of lib.rs.
const ROOMS: [(&str, &[&str]); 13] = [
    ("oci", &[]),
    ("layout", &["oci"]),
    ("graph", &["oci", "layout"]),
    ("registry", &["oci", "layout", "graph"]),
    ("upkeep", &["oci", "layout", "graph"]),
    ("events", &["oci", "layout"]),
    ("auth", &["oci"]),
    ("access", &["oci", "layout", "auth"]),
    ("web", &["oci", "layout"]),
    ("config", &["oci", "registry", "upkeep", "auth", "access", "http", "web"]),
    ("http", &["oci", "layout", "graph", "registry", "upkeep", "auth", "access", "events"]),
    ("wipe", &[]),
    ("lib", &[]),
];

/// Modules that may say `unsafe`, each with SAFETY comments.
const UNSAFE: [&str; 4] =
    ["auth/pam.rs", "http/sendfile/map.rs", "layout/write_back.rs", "wipe.rs"];

/// So many lines a file may have before its unit tests. A larger one has two subjects.
const MOST_LINES: usize = 500;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of the source, relative to `src/`, with its text.
fn sources() -> Vec<(String, String)> {
    sources_in(&src())
}

fn sources_in(above: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo = vec![above.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(above).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The room of a file: the first part of its path.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The code of a file, without comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The rooms that `crate::` names, one at a time or in braces.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => {
                found.insert(word(rest));
            }
            Some(list) => {
                let mut depth = 0;
                let mut begin = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begin = true,
                        c if begin && !c.is_whitespace() => {
                            found.insert(word(&list[at..]));
                            begin = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn imports_run_one_way() {
    for (file, text) in sources() {
        // The program is another crate: it sees what the library shows.
        if file == "main.rs" || room(&file) == "commands" {
            continue;
        }
        let own = room(&file);
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == own) else {
            panic!("src/{file} is in no room of lib.rs: give {own:?} its arrows");
        };
        for import in imports(&code(&text)) {
            assert!(
                import == own || allowed.contains(&import.as_str()),
                "src/{file} imports crate::{import}, which {own} may not: {allowed:?}"
            );
        }
    }
}

#[test]
fn the_arrows_are_read_right() {
    let found =
        imports("use crate::{oci::{Digest, Tag}, layout::Dir};\nlet x = crate::graph::y();");
    assert_eq!(found, ["graph", "layout", "oci"].map(str::to_owned).into());
}

#[test]
fn every_module_says_its_subject_and_has_one() {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/src");
    for (file, text) in sources().into_iter().chain(sources_in(&bench)) {
        assert!(text.starts_with("//! "), "{file} does not begin with //!");
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        assert!(lines <= MOST_LINES, "{file} has {lines} lines, more than {MOST_LINES}");
    }
}

#[test]
fn unsafe_stands_in_listed_modules_only() {
    let forms = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code)"];
    let says = |text: &str| forms.iter().any(|form| code(text).contains(form));
    let found: Vec<_> =
        sources().into_iter().filter(|(_, text)| says(text)).map(|(file, _)| file).collect();
    assert_eq!(found, UNSAFE);
}

#[test]
fn every_room_of_the_source_is_on_the_map() {
    let map = fs::read_to_string(src().join("lib.rs")).unwrap();
    for (name, _) in ROOMS.iter().filter(|(name, _)| *name != "lib") {
        assert!(map.contains(&format!("| [`{name}`] |")), "{name} is missing in lib.rs");
    }
}
