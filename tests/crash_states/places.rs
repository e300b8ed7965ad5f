//! Where in the code something is made durable.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use stillage::layout::path;

/// Where in the code something is synced, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// `src/layout/durable.rs:31`; empty unless the recorder was asked to look.
    pub line: String,
    /// The functions, innermost first.
    pub functions: String,
    /// What is synced: a name without what is random in it.
    pub what: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.functions, self.what)
    }
}

/// The innermost lines of the library in a backtrace.
pub(super) fn ours(trace: &str) -> (String, String) {
    let mut line = String::new();
    let mut functions: Vec<String> = Vec::new();
    let mut function = "";
    // Files of this package are told relative to it.
    for text in trace.lines().map(str::trim) {
        match text.strip_prefix("at ") {
            None => function = text.split_once(": ").map_or("", |(_, name)| name),
            Some(at) => {
                let Some(file) = at.strip_prefix("./src/") else { continue };
                let mut parts = file.split(':');
                let (file, number) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
                if line.is_empty() {
                    line = format!("src/{file}:{number}");
                }
                let name = function.rsplit("::").find(|part| !part.starts_with('{'));
                let name = name.filter(|name| !name.is_empty() && !name.contains('{'));
                // A closure belongs to the function around it, which is told next.
                let Some(name) = name else { continue };
                let name = format!("{}::{name}", file.trim_end_matches(".rs"));
                if functions.last() != Some(&name) {
                    functions.push(name);
                }
            }
        }
    }
    functions.truncate(2);
    (line, functions.join(" < "))
}

/// What a sync is of, without what is random.
fn what(name: &str) -> String {
    if name.len() >= 64 {
        return "a blob".to_owned();
    }
    if name.starts_with("stillage-crash-") {
        return "the directory above ROOT".to_owned();
    }
    // Of a file of hints, or of a run that took something out.
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if name.len() == 3 && digits(name) {
        return "hints".to_owned();
    }
    if name.get(..8).is_some_and(digits) && name.contains('Z') {
        return if name.ends_with(".jsonl") { "the list" } else { "a run" }.to_owned();
    }
    match name.strip_prefix('.').and_then(|name| name.rsplit_once('.')) {
        Some((of, _)) if path::is_temporary(name) => of.to_owned(),
        _ => name.to_owned(),
    }
}

pub(super) fn base(path: &Path) -> String {
    what(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// Every line of the source that syncs through a disk.
pub fn in_the_code() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory");
            todo.extend(entries.map(|entry| entry.expect("a name").path()));
            continue;
        }
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a file of ours");
        let name = name.to_str().expect("UTF-8");
        // How far receivers of events were told: what is lost of it is told again. tests/webhook.rs kills
        // the server in between.
        let told = name == "src/layout/told.rs";
        if name.contains("test") || name == "src/layout/disk.rs" || told {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let begins = |text: &str| code.trim_start().starts_with(text);
            let calls = ["disk.sync(", "disk.sync_dir(", "disk.sync_all("];
            let broken = [".sync(&", ".sync_dir(", ".sync_all(&"];
            if calls.iter().any(|call| code.contains(call)) || broken.into_iter().any(begins) {
                found.insert(format!("{name}:{}", number + 1));
            }
        }
    }
    found
}
