//! The commands of docs/backup.md, to be run as they stand there.

use std::path::Path;
use std::process::Command;

use super::STILLAGE;
use super::command::{Outcome, run};

/// The names of all its blocks of commands, in their order.
pub fn names() -> Vec<String> {
    blocks().into_iter().map(|(name, _)| name).collect()
}

/// Runs one block in a shell that stops at the first failure. `values` are what the page lets the
/// reader set first.
#[track_caller]
pub fn recipe(name: &str, values: &[(&str, &Path)]) -> Outcome {
    let (_, script) = blocks().into_iter().find(|(other, _)| other == name).expect("such a block");
    let programs = Path::new(STILLAGE).parent().expect("a directory").display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script]).env("PATH", path);
    for (variable, value) in values {
        shell.env(variable, value);
    }
    run(&mut shell)
}

/// Blocks begin with ```` ```sh NAME ````.
fn blocks() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/backup.md");
    let page = std::fs::read_to_string(page).expect("docs/backup.md");
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let name = info.strip_prefix("sh ").expect("every block is `sh` and has a name");
                open = Some((name.to_owned(), String::new()));
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some((_, script)), None) => {
                script.push_str(line);
                script.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    found
}
