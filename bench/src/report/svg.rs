//! Pictures: bars with their spread, drawn by hand, readable on white and on dark.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Report;
use super::table::number;
use crate::measure::{Metric, Row};
use crate::works::{self, Work};

const WIDTH: f64 = 760.0;
/// Where the bars begin, and how long the longest is.
const LEFT: f64 = 170.0;
const LONGEST: f64 = 430.0;
const BAR: f64 = 16.0;
const GAP: f64 = 5.0;
const CASE: f64 = 26.0;

/// Colours that can be told from each other, by anybody, on white and on dark; text is a grey that is read on both.
const STYLE: &str = "text{font:13px sans-serif;fill:#777}.title{font-weight:bold}.spread{stroke:#777;stroke-width:1.5}\
.stillage{fill:#e07b00}.nginx{fill:#2f8f5b}.docker-registry{fill:#3b7fc4}.floor{fill:#999}";

/// A picture for each work: its first figure, for everybody and every case. Gives the files' names.
pub(super) fn draw(report: &Report, dir: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    std::fs::create_dir_all(dir)?;
    let mut drawn = Vec::new();
    for work in works::ALL {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.work == work.name).collect();
        if !rows.is_empty() {
            let path = dir.join(format!("{}.svg", work.name));
            std::fs::write(&path, picture(work, &rows))?;
            drawn.push((work.name, path));
        }
    }
    Ok(drawn)
}

fn picture(work: &Work, rows: &[&Row]) -> String {
    let metric = work.metrics[0];
    let most = rows.iter().map(|row| row.spread(metric).upper).fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    let mut y = 30.0;
    let mut case = "";
    for row in rows {
        if row.case != case {
            case = &row.case;
            y += CASE;
            let _ = writeln!(body, r#"<text x="8" y="{:.0}">{}</text>"#, y - 6.0, escaped(case));
        }
        bar(&mut body, row, metric, LONGEST / most, y);
        y += BAR + GAP;
    }
    let title = escaped(&format!("{}: {}", work.name, metric.name()));
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{title}">
<style>{STYLE}</style>
<text class="title" x="8" y="20">{title}</text>
{body}</svg>
"#,
        height = y + 10.0
    )
}

/// A bar to the median, and a line from quartile to quartile.
fn bar(body: &mut String, row: &Row, metric: Metric, scale: f64, y: f64) {
    let spread = row.spread(metric);
    let [lower, median, upper] =
        [spread.lower, spread.median, spread.upper].map(|value| value * scale);
    let class = if row.who.starts_with("floor") { "floor" } else { row.who.as_str() };
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        body,
        r#"<text x="{:.0}" y="{:.1}" text-anchor="end">{}</text><rect class="{class}" x="{LEFT}" y="{y:.1}" width="{:.1}" height="{BAR}"/><line class="spread" x1="{:.1}" x2="{:.1}" y1="{middle:.1}" y2="{middle:.1}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
        LEFT - 8.0,
        y + BAR - 4.0,
        escaped(&row.who),
        median.max(1.0),
        LEFT + lower,
        LEFT + upper,
        LEFT + upper.max(median) + 8.0,
        y + BAR - 4.0,
        number(spread.median),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;

    #[test]
    fn the_longest_bar_fits() {
        let sample = |cpu| Sample { cpu, bytes: 1 << 30, requests: 1, ..Sample::default() };
        let row = |who: &str, cpu| Row {
            work: "get".into(),
            case: "4 <clients>".into(),
            who: who.into(),
            samples: vec![sample(cpu)],
        };
        let rows = [row("stillage", 0.1), row("nginx", 0.2)];
        let work = works::ALL.iter().find(|work| work.name == "get").unwrap();
        let text = picture(work, &rows.iter().collect::<Vec<_>>());
        assert!(text.contains("width=\"430.0\"") && text.contains("width=\"215.0\""), "{text}");
        assert!(text.contains("4 &lt;clients&gt;"), "{text}");
    }
}
