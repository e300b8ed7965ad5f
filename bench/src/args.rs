//! The command line. `bench/run` hands on what it does not know itself.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::works;

/// What `--help` says.
pub(crate) const USAGE: &str = "\
Measures Stillage beside nginx and docker-registry, in turns in one run.

  bench/run                     everything: about half an hour
  bench/run --only NAME[,NAME]  these works only
  bench/run --rounds N          so many turns for each server (7)
  bench/run --json FILE         where the figures go (bench/target/bench.json)
  bench/run --docs              and into docs/performance.md and docs/performance/*.svg
  bench/run --from FILE         measures nothing: the report of figures that --json wrote
  bench/run --list              the works, one a line
  bench/run --short             the counts that noise cannot move, against bench/expected.toml
  bench/run --short --instructions   and instructions: minutes, with STILLAGE_BENCH_BINARY a release build
  bench/run --short --write     the same, and writes that file anew

STILLAGE_BENCH_DIR names the directory on whose file system the trees are made (/var/tmp).
STILLAGE_BENCH_BINARY names another build of Stillage to measure.
";

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Args {
    /// Names of works; empty: all of them.
    pub(crate) only: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) json: PathBuf,
    /// Figures of an earlier run, of which only the report is made.
    pub(crate) from: Option<PathBuf>,
    /// Whether docs/performance.md and its pictures are written.
    pub(crate) docs: bool,
    pub(crate) list: bool,
    /// The short form,
    pub(crate) short: bool,
    /// and whether it writes what it counts into the file of what is expected.
    pub(crate) write: bool,
    /// Whether it counts instructions as well.
    pub(crate) instructions: bool,
}

impl Args {
    /// Nothing where help is asked for.
    pub(crate) fn parse(args: &[String]) -> Result<Option<Args>> {
        let mut parsed = Args {
            only: Vec::new(),
            rounds: 7,
            json: PathBuf::from("bench/target/bench.json"),
            from: None,
            docs: false,
            list: false,
            short: false,
            write: false,
            instructions: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--only" => parsed.only = value()?.split(',').map(str::to_owned).collect(),
                "--rounds" => parsed.rounds = value()?.parse().context("--rounds N")?,
                "--json" => parsed.json = value()?.into(),
                "--from" => parsed.from = Some(value()?.into()),
                "--docs" => parsed.docs = true,
                "--list" => parsed.list = true,
                "--short" => parsed.short = true,
                "--write" => parsed.write = true,
                "--instructions" => parsed.instructions = true,
                _ => bail!("{arg} is not known: --help says what is"),
            }
        }
        for name in &parsed.only {
            let known = works::ALL.iter().any(|work| work.name == name);
            anyhow::ensure!(known, "no work is called {name}: --list says which there are");
        }
        anyhow::ensure!(parsed.short || !parsed.write, "--write belongs to --short");
        anyhow::ensure!(parsed.rounds > 0, "--rounds 0 measures nothing");
        Ok(Some(parsed))
    }

    /// Whether a work is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}
