//! The goals, as data: which figure is compared with what, and whether it was reached.

use serde::{Deserialize, Serialize};

use crate::measure::{Metric, Row};
use crate::stats::median;

/// The median of what somebody took for a case of a work.
#[derive(Clone, Copy, Debug)]
struct Figure {
    work: &'static str,
    case: &'static str,
    who: &'static str,
    metric: Metric,
}

const fn of(work: &'static str, case: &'static str, who: &'static str, metric: Metric) -> Figure {
    Figure { work, case, who, metric }
}

/// The most that somebody took in any turn of all works.
const fn ever(who: &'static str, metric: Metric) -> Figure {
    of("", "", who, metric)
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Below(f64),
    /// At most so many times the sum of others.
    AtMost(f64, &'static [Figure]),
    AtLeast(f64, Figure),
}

/// A goal of Stillage.
struct Goal {
    figure: Figure,
    bound: Bound,
    /// It holds only where this figure is at most so much.
    where_at_most: Option<(Figure, f64)>,
}

/// What became of a goal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Which figure, with its unit.
    pub(crate) what: String,
    /// What it had to be, in words.
    pub(crate) goal: String,
    pub(crate) figure: f64,
    /// The limit in the figure's unit.
    pub(crate) limit: f64,
    /// Nothing where the goal does not hold on this machine.
    pub(crate) met: Option<bool>,
}

const STILLAGE: &str = "stillage";
const NGINX: &str = "nginx";
const REGISTRY: &str = "docker-registry";

const fn goal(figure: Figure, bound: Bound) -> Goal {
    Goal { figure, bound, where_at_most: None }
}

/// GET of 1 GiB by so many clients.
const fn get(case: &'static str, metric: Metric, times: f64, others: &'static [Figure]) -> Goal {
    goal(of("get", case, STILLAGE, metric), Bound::AtMost(times, others))
}

/// Small blobs of a size, beside nginx.
const fn small(case: &'static str, times: f64, nginx: &'static [Figure]) -> Goal {
    goal(of("small", case, STILLAGE, CPU), Bound::AtMost(times, nginx))
}

const CPU: Metric = Metric::CpuPerRequest;
const GIB: Metric = Metric::CpuPerGib;
const FOUR: &str = "4 clients";
const EIGHT: &str = "8 clients";

/// What a push cannot leave out.
const FLOORS: &[Figure] = &[
    of("push", STREAMED, "floor: receive", GIB),
    of("push", STREAMED, "floor: hash", GIB),
    of("push", STREAMED, "floor: write", GIB),
];
const MONOLITHIC: &str = "POST, PUT";
const STREAMED: &str = "POST, PATCH, PUT";
const CHUNKED: &str = "chunks of 64 MiB";
const HASH_WALL: &[Figure] = &[of("push", STREAMED, "floor: hash", Metric::Wall)];

const fn push(case: &'static str, metric: Metric, bound: Bound) -> Goal {
    goal(of("push", case, STILLAGE, metric), bound)
}

/// Images a second, where the disk is quick enough.
const fn images(case: &'static str) -> Goal {
    let per_second = Metric::RequestsPerSecond;
    Goal {
        figure: of("images", case, STILLAGE, per_second),
        bound: Bound::AtLeast(1.5, of("images", case, REGISTRY, per_second)),
        where_at_most: Some((of("images", case, "floor: fsync of 4 KiB", Metric::Median), 0.5)),
    }
}

const fn manifest(case: &'static str) -> Goal {
    let metric = Metric::RequestsPerCpu;
    let nginx = Bound::AtLeast(0.9, of("manifest", case, NGINX, metric));
    goal(of("manifest", case, STILLAGE, metric), nginx)
}

const GOALS: &[Goal] = &[
    get(FOUR, GIB, 1.0, &[of("get", FOUR, NGINX, GIB)]),
    get(FOUR, GIB, 0.7, &[of("get", FOUR, REGISTRY, GIB)]),
    get(FOUR, Metric::Wall, 1.0, &[of("get", FOUR, NGINX, Metric::Wall)]),
    get(EIGHT, GIB, 1.0, &[of("get", EIGHT, NGINX, GIB)]),
    get(EIGHT, GIB, 0.7, &[of("get", EIGHT, REGISTRY, GIB)]),
    get(EIGHT, Metric::Wall, 1.0, &[of("get", EIGHT, NGINX, Metric::Wall)]),
    goal(of("slow", "500 clients", STILLAGE, Metric::Anonymous), Bound::Below(64.0)),
    small("4 KiB", 1.2, &[of("small", "4 KiB", NGINX, CPU)]),
    small("64 KiB", 1.4, &[of("small", "64 KiB", NGINX, CPU)]),
    small("256 KiB", 1.1, &[of("small", "256 KiB", NGINX, CPU)]),
    small("1 MiB", 1.1, &[of("small", "1 MiB", NGINX, CPU)]),
    manifest("by tag, 10 tags"),
    manifest("by tag, 100,000 tags"),
    push(MONOLITHIC, GIB, Bound::AtMost(1.15, FLOORS)),
    push(STREAMED, GIB, Bound::AtMost(1.15, FLOORS)),
    push(CHUNKED, GIB, Bound::AtMost(1.15, FLOORS)),
    push(MONOLITHIC, GIB, Bound::AtMost(1.0 / 3.0, &[of("push", MONOLITHIC, REGISTRY, GIB)])),
    push(STREAMED, GIB, Bound::AtMost(1.0 / 3.0, &[of("push", STREAMED, REGISTRY, GIB)])),
    push(CHUNKED, GIB, Bound::AtMost(1.0 / 3.0, &[of("push", CHUNKED, REGISTRY, GIB)])),
    push(STREAMED, Metric::Anonymous, Bound::Below(64.0)),
    push(MONOLITHIC, Metric::Wall, Bound::AtMost(1.6, HASH_WALL)),
    push(STREAMED, Metric::Wall, Bound::AtMost(1.6, HASH_WALL)),
    images("one repository"),
    images("16 repositories"),
    goal(
        of("put", "10,000 tags", STILLAGE, Metric::Median),
        Bound::AtMost(1.0, &[of("put", "10,000 tags", REGISTRY, Metric::Median)]),
    ),
    goal(
        of("put", "100,000 tags", STILLAGE, Metric::Median),
        Bound::AtMost(1.5, &[of("put", "100,000 tags", "floor: replace", Metric::Median)]),
    ),
    goal(of("mount", "1 KiB", STILLAGE, Metric::Median), Bound::Below(2.0)),
    goal(of("mount", "1 GiB", STILLAGE, Metric::Median), Bound::Below(2.0)),
    goal(of("idle", "idle", STILLAGE, Metric::Anonymous), Bound::Below(15.0)),
    goal(ever(STILLAGE, Metric::Anonymous), Bound::Below(128.0)),
    goal(
        of("catalogue", "first answer after the start", STILLAGE, Metric::Median),
        Bound::Below(100.0),
    ),
];

/// What became of all goals whose figures were measured.
pub(crate) fn judge(rows: &[Row]) -> Vec<Verdict> {
    GOALS.iter().filter_map(|goal| goal.judge(rows)).collect()
}

impl Goal {
    fn judge(&self, rows: &[Row]) -> Option<Verdict> {
        let figure = self.figure.value(rows)?;
        let (limit, met, goal) = match self.bound {
            Bound::Below(limit) => (limit, figure < limit, format!("< {limit}")),
            Bound::AtMost(times, others) => {
                let sum: Option<f64> = others.iter().map(|other| other.value(rows)).sum();
                let limit = times * sum?;
                let names: Vec<_> = others.iter().map(|other| other.who).collect();
                (limit, figure <= limit, format!("≤ {times:.2} × {}", names.join(" + ")))
            }
            Bound::AtLeast(times, other) => {
                let limit = times * other.value(rows)?;
                (limit, figure >= limit, format!("≥ {times:.2} × {}", other.who))
            }
        };
        let holds = match self.where_at_most {
            None => true,
            Some((figure, most)) => figure.value(rows)? <= most,
        };
        let what = self.figure.name();
        Some(Verdict { what, goal, figure, limit, met: holds.then_some(met) })
    }
}

impl Figure {
    fn value(self, rows: &[Row]) -> Option<f64> {
        if self.work.is_empty() {
            let rows = rows.iter().filter(|row| row.who == self.who);
            let values = rows.flat_map(|row| row.values(self.metric));
            return values.reduce(f64::max);
        }
        let row = rows
            .iter()
            .find(|row| row.work == self.work && row.case == self.case && row.who == self.who)?;
        (!row.samples.is_empty()).then(|| median(&row.values(self.metric)))
    }

    fn name(self) -> String {
        let metric = self.metric.name();
        if self.work.is_empty() {
            return format!("under all of the bench: {metric}");
        }
        format!("{}, {}: {metric}", self.work, self.case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::works;

    fn row(work: &str, case: &str, who: &str, cpu: f64) -> Row {
        let sample = Sample { cpu, bytes: 1 << 30, requests: 1, ..Sample::default() };
        Row { work: work.into(), case: case.into(), who: who.into(), samples: vec![sample] }
    }

    #[test]
    fn a_goal_is_met_or_not() {
        let mut rows = vec![row("get", FOUR, STILLAGE, 0.20), row("get", FOUR, NGINX, 0.25)];
        let met = |rows: &[Row]| -> Vec<_> { judge(rows).iter().map(|one| one.met).collect() };
        // Processor time beside nginx, wall (zero is at most zero), memory of all works.
        assert_eq!(met(&rows), [Some(true), Some(true), Some(true)]);
        rows[0].samples[0].cpu = 0.26;
        assert_eq!(met(&rows), [Some(false), Some(true), Some(true)]);
        assert_eq!(judge(&rows)[0].limit, 0.25);
    }

    #[test]
    fn where_the_disk_is_slow_images_have_no_goal() {
        let mut fsync = row("images", "one repository", "floor: fsync of 4 KiB", 1.0);
        let latency = crate::measure::Latency { median: 0.001, p99: 0.0, worst: 0.0 };
        fsync.samples[0].latency = Some(latency);
        let mut rows =
            [STILLAGE, REGISTRY].map(|who| row("images", "one repository", who, 1.0)).to_vec();
        rows.push(fsync);
        assert_eq!(judge(&rows)[0].met, None);
    }

    #[test]
    fn goals_are_about_works_that_there_are() {
        for goal in GOALS.iter().filter(|goal| !goal.figure.work.is_empty()) {
            let known = works::ALL.iter().any(|work| work.name == goal.figure.work);
            assert!(known, "{}", goal.figure.name());
        }
    }
}
