//! `stillage gc`, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::{ConfigError, units};
use crate::oci::RepoName;
use crate::upkeep::gc::Options;

/// `stillage gc`
#[derive(Debug, Args)]
#[command(override_usage = "stillage gc [ROOT] [REPO] [OPTIONS]")]
#[command(after_help = "With STILLAGE_ROOT set, ROOT is left out, or begins with '/' or '.'.")]
pub struct GcArgs {
    /// The registry's directory, and a repository if it is the only one to be collected
    #[arg(num_args = 0..=2, value_names = ["ROOT", "REPO"])]
    question: Vec<String>,
    /// How long a blob stays that nothing refers to: 30m, 24h, 0
    #[arg(long, env = "STILLAGE_GRACE", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "24h", value_parser = units::duration_or_none)]
    grace: Duration,
    /// How long what was deleted or replaced can be brought back: 7d, 0
    #[arg(long, env = "STILLAGE_UNDO_WINDOW", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "7d", value_parser = units::duration_or_none)]
    undo_window: Duration,
    /// Take out manifests, too, that lost their last tag long ago
    #[arg(long, env = "STILLAGE_UNTAGGED", hide_env = true, value_parser = FalseyValueParser::new())]
    untagged: bool,
    /// With --untagged: how long ago
    #[arg(long, env = "STILLAGE_OLDER", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "30d", requires = "untagged", value_parser = units::duration_or_none)]
    older: Duration,
    /// No grace and no undo: for a full disk, or for content that has to go
    #[arg(long, env = "STILLAGE_NOW", hide_env = true, value_parser = FalseyValueParser::new())]
    now: bool,
    /// How long to wait for whoever copies the tree or holds a repository
    #[arg(long, env = "STILLAGE_WAIT", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "60s", value_parser = units::duration_or_none)]
    wait: Duration,
    /// How long an upload that gets no byte is kept, as the server has it
    #[arg(long, env = "STILLAGE_UPLOAD_EXPIRY", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "24h", value_parser = units::duration)]
    upload_expiry: Duration,
    /// Say what would be done, and change nothing
    #[arg(short = 'n', long, env = "STILLAGE_DRY_RUN", hide_env = true, value_parser = FalseyValueParser::new())]
    dry_run: bool,
    /// A line for each blob, with the reason
    #[arg(short, long, env = "STILLAGE_VERBOSE", hide_env = true, value_parser = FalseyValueParser::new())]
    verbose: bool,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    json: bool,
}

/// `stillage gc`, checked.
#[derive(Debug)]
pub struct Gc {
    /// The directory that holds the registry.
    pub root: PathBuf,
    /// What to collect.
    pub options: Options,
    /// Whether to tell of each digest.
    pub verbose: bool,
    /// Whether to tell it as JSON.
    pub json: bool,
}

impl GcArgs {
    /// Checks what was typed. `root` is what the environment says of ROOT.
    pub fn check(self, root: Option<PathBuf>) -> Result<Gc, ConfigError> {
        let mut words = self.question.into_iter();
        let first = words.next();
        let (root, repo) = match (root, first) {
            (None, None) => return Err(ConfigError::NoRoot),
            (Some(root), None) => (root, None),
            // No repository is called so.
            (Some(root), Some(first)) if !first.starts_with(['/', '.']) && words.len() == 0 => {
                (root, Some(first))
            }
            (_, Some(first)) => (PathBuf::from(first), words.next()),
        };
        let only = repo.map(|repo| RepoName::parse(&repo)).transpose()?;
        let options = Options {
            grace: self.grace,
            undo_window: self.undo_window,
            untagged: self.untagged.then_some(self.older),
            wait: self.wait,
            upload_expiry: Some(self.upload_expiry),
            only,
            dry_run: self.dry_run,
            ..Options::default()
        };
        let options = if self.now { options.at_once() } else { options };
        Ok(Gc { root, options, verbose: self.verbose, json: self.json })
    }
}
