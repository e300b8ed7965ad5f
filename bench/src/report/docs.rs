//! The part of docs/performance.md that is written by `bench/run --docs`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Report, svg, table};
use crate::machine::Machine;

const PAGE: &str = "docs/performance.md";
const PICTURES: &str = "docs/performance";
/// What is between these lines is ours; all else is people's.
const BEGIN: &str = "<!-- bench/run --docs writes from here -->";
const END: &str = "<!-- to here -->";

/// Replaces it, and draws the pictures.
pub(super) fn write(report: &Report) -> Result<()> {
    let mut part = machine(&report.machine, report.rounds);
    part.push_str(&table::text(report));
    for (name, path) in svg::draw(report, Path::new(PICTURES))? {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(part, "![{name}](performance/{file})");
    }
    let page = std::fs::read_to_string(PAGE).context(PAGE)?;
    let page = replaced(&page, &part).with_context(|| format!("{PAGE} lacks the two lines"))?;
    std::fs::write(PAGE, page).context(PAGE)
}

fn replaced(page: &str, part: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{part}\n{END}{after}"))
}

/// Where and with what.
fn machine(machine: &Machine, rounds: usize) -> String {
    let mut text = String::from("| | |\n|---|---|\n");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    line("processor", &format!("{}, {} cores", machine.processor, machine.cores));
    line("memory", &format!("{} GiB", machine.memory >> 30));
    line("kernel", &machine.kernel);
    line("file system", &machine.file_system);
    for (name, version) in &machine.versions {
        line(name, version);
    }
    line("commit", &machine.commit);
    line("when", &machine.time);
    line("turns of each", &rounds.to_string());
    line("load average at the beginning", &machine.load);
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replaced(&page, "new"), Some(format!("a\n{BEGIN}\n\nnew\n{END}\nb\n")));
        assert_eq!(replaced("a", "new"), None);
    }
}
