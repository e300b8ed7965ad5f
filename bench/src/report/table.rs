//! Tables: plain Markdown, which a terminal shows as well.

use std::fmt::Write as _;

use super::Report;
use crate::goals::Verdict;
use crate::measure::{Metric, Row};
use crate::process::TICK;
use crate::stats::Spread;
use crate::works::{self, Work};

/// Everything that was measured, a table for each work.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    for work in works::ALL {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.work == work.name).collect();
        if !rows.is_empty() {
            table(&mut text, work, &rows);
        }
    }
    goals(&mut text, &report.goals);
    text
}

/// What became of the goals.
fn goals(text: &mut String, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    text.push_str("### goals\n\n| figure | goal | limit | measured | |\n|---|---|---|---|---|\n");
    for Verdict { what, goal, figure, limit, met } in verdicts {
        let met = match met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "does not hold here",
        };
        let (limit, figure) = (number(*limit), number(*figure));
        let _ = writeln!(text, "| {what} | {goal} | {limit} | {figure} | {met} |");
    }
}

fn table(text: &mut String, work: &Work, rows: &[&Row]) {
    let _ = writeln!(text, "### {}: {}\n", work.name, work.about);
    let names = work.metrics.iter().map(|metric| format!(" {} |", metric.name()));
    let _ = writeln!(
        text,
        "| case | who |{} × nginx | × docker-registry | tick |",
        names.collect::<String>()
    );
    let _ = writeln!(text, "|---|---|{}---|---|---|", "---|".repeat(work.metrics.len()));
    for row in rows {
        let cells = work.metrics.iter().map(|metric| format!(" {} |", cell(row, *metric)));
        let others = ["nginx", "docker-registry"].map(|who| ratio(rows, row, who, work.metrics[0]));
        let (cells, exactness) = (cells.collect::<String>(), exactness(row));
        let [nginx, registry] = others;
        let _ = writeln!(
            text,
            "| {} | {} |{cells} {nginx} | {registry} | {exactness} |",
            row.case, row.who
        );
    }
    text.push('\n');
}

/// Stillage's figure beside another's of the same round: the median of these ratios, with its quartiles.
fn ratio(rows: &[&Row], row: &Row, who: &str, metric: Metric) -> String {
    let other = rows.iter().find(|other| other.case == row.case && other.who == who);
    let Some(other) = other.filter(|_| row.who == "stillage") else { return String::new() };
    let pairs = row.values(metric).into_iter().zip(other.values(metric));
    let ratios: Vec<f64> =
        pairs.filter(|(_, other)| *other > 0.0).map(|(own, other)| own / other).collect();
    spread(&Spread::of(&ratios))
}

/// How exact a figure of processor time is: whole ticks are counted, so one of them beside the shortest
/// turn. Floors are exact.
fn exactness(row: &Row) -> String {
    let least = row.samples.iter().map(|sample| sample.cpu).reduce(f64::min).unwrap_or(0.0);
    match row.who.starts_with("floor") {
        true => "exact".to_owned(),
        false => format!("± {} %", number(100.0 * TICK / least.max(TICK))),
    }
}

fn cell(row: &Row, metric: Metric) -> String {
    spread(&row.spread(metric))
}

/// The median, and between which quartiles it lies.
fn spread(spread: &Spread) -> String {
    if spread.most == 0.0 {
        return "–".to_owned();
    }
    let [lower, median, upper] = [spread.lower, spread.median, spread.upper].map(number);
    format!("{median} ({lower}–{upper})")
}

/// Three digits that count, thousands with commas.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let written = [0.1234, 1.234, 12.34, 123.4, 1234.0, 1_234_567.0].map(number);
        assert_eq!(written, ["0.123", "1.23", "12.3", "123", "1,234", "1,234,567"]);
    }
}
