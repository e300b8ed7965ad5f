//! `stillage snapshot`, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::units;

/// `stillage snapshot`
#[derive(Debug, Args)]
#[command(
    long_about = "Copy ROOT to DEST on the same file system, in moments: blobs are shared.\n\nRun it \
                  as root, which keeps owners and groups, or as the account that the server runs as."
)]
pub struct SnapshotArgs {
    /// The directory that holds the registry
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    pub root: PathBuf,
    /// The directory to be made: not there yet, or empty
    #[arg(env = "STILLAGE_DEST", hide_env = true)]
    pub dest: PathBuf,
    /// An earlier snapshot, to share with it what cannot be shared with ROOT [default: the newest
    /// one beside DEST]
    #[arg(long, env = "STILLAGE_PREVIOUS", hide_env = true, value_name = "DIR")]
    pub previous: Option<PathBuf>,
    /// How long to wait for a collection that does not let others in
    #[arg(long, env = "STILLAGE_WAIT", hide_env = true, value_name = "TIME", default_value = "60s",
        value_parser = units::duration)]
    pub wait: Duration,
    /// Only say what would be made
    #[arg(short = 'n', long, env = "STILLAGE_DRY_RUN", hide_env = true, value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
}
