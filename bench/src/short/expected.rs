//! The file of expected counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// What was counted for each request of a scenario: name and count.
pub(super) type Counts = BTreeMap<String, f64>;

/// What the file begins with.
const HEAD: &str = "\
# What one request takes, and why: compared by `bench/run --short`, which tests/run calls.
#
# A name is a system call on a file beneath ROOT, `socket CALL` one on the connection, `bytes read` what was
# copied from files into the process, `bytes index.json` what was written to it. Calls of the runtime itself (futex,
# epoll, its wake-ups) depend on who is awake and are not counted, nor is a read of the socket that finds
# nothing. `bench/run --short --write` writes the counts anew and keeps the reasons; a new line has none
# yet, and wants one.
";

#[derive(Clone, Debug, Deserialize)]
struct Line {
    count: f64,
    why: String,
}

/// What is expected of each scenario.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<String, BTreeMap<String, Line>>);

impl Expected {
    /// A file that is not there expects nothing.
    pub(super) fn read(path: &Path) -> Result<Expected> {
        if !path.exists() {
            return Ok(Expected::default());
        }
        let text = std::fs::read_to_string(path)?;
        let all = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Expected(all))
    }

    /// These counts, with the reasons that are known.
    pub(super) fn replace(&mut self, counted: &BTreeMap<String, Counts>) {
        let before = std::mem::take(&mut self.0);
        let line = |scenario: &str, name: &String, count: &f64| {
            let known = before.get(scenario).and_then(|lines| lines.get(name));
            let why = known.map_or(String::new(), |line| line.why.clone());
            (name.clone(), Line { count: *count, why })
        };
        for (scenario, counts) in counted {
            let lines = counts.iter().map(|(name, count)| line(scenario, name, count));
            self.0.insert(scenario.clone(), lines.collect());
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.text()).with_context(|| path.display().to_string())
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (scenario, lines) in &self.0 {
            let _ = writeln!(text, "\n[{scenario}]");
            for (name, Line { count, why }) in lines {
                let _ = writeln!(text, "{name:?} = {{ count = {count}, why = {why:?} }}");
            }
        }
        text
    }

    /// What differs, each with how to look at it.
    pub(super) fn complaints(&self, counted: &BTreeMap<String, Counts>) -> Vec<String> {
        let mut all = Vec::new();
        let nothing = BTreeMap::new();
        for (scenario, counts) in counted {
            let lines = self.0.get(scenario).unwrap_or(&nothing);
            for (name, count) in counts {
                match lines.get(name) {
                    None => all.push(format!("{scenario}: {name}: {count}, expected none")),
                    Some(line) if line.count != *count => {
                        let (expected, why) = (line.count, &line.why);
                        all.push(format!(
                            "{scenario}: {name}: {count}, expected {expected} ({why})"
                        ));
                    }
                    Some(line) if line.why.is_empty() => {
                        all.push(format!("{scenario}: {name}: {count}, and no reason why"));
                    }
                    Some(_) => {}
                }
            }
            for (name, line) in lines.iter().filter(|(name, _)| !counts.contains_key(*name)) {
                let (expected, why) = (line.count, &line.why);
                all.push(format!("{scenario}: {name}: none, expected {expected} ({why})"));
            }
        }
        let gone = self.0.keys().filter(|scenario| !counted.contains_key(*scenario));
        all.extend(gone.map(|scenario| format!("{scenario}: no such scenario")));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(count: f64) -> BTreeMap<String, Counts> {
        [("get".to_owned(), [("openat2".to_owned(), count)].into())].into()
    }

    #[test]
    fn what_is_written_is_read_again_and_keeps_its_reasons() {
        let mut expected = Expected::default();
        expected.replace(&counted(2.0));
        assert_eq!(expected.complaints(&counted(2.0)), ["get: openat2: 2, and no reason why"]);
        let text = expected.text().replace("why = \"\"", "why = \"the \\\"blob\\\"\"");
        let mut expected = Expected(toml::from_str(&text).unwrap());
        assert!(expected.complaints(&counted(2.0)).is_empty());
        assert_eq!(expected.complaints(&counted(3.0)).len(), 1);
        assert_eq!(expected.complaints(&BTreeMap::new()), ["get: no such scenario"]);
        expected.replace(&counted(3.5));
        assert!(expected.complaints(&counted(3.5)).is_empty());
    }
}
