//! `stillage check`, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::units::duration_or_none;

/// `stillage check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The directory that holds the registry
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    pub root: PathBuf,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Manifests may refer to what is not here, as under serve --allow-sparse
    #[arg(long, env = "STILLAGE_ALLOW_SPARSE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub allow_sparse: bool,
    /// Do not read content: all but the digests is checked
    #[arg(long, env = "STILLAGE_QUICK", hide_env = true, value_parser = FalseyValueParser::new())]
    pub quick: bool,
    /// Put right what can be put right; what is taken out goes to .stillage/quarantine
    #[arg(long, env = "STILLAGE_REPAIR", hide_env = true, value_parser = FalseyValueParser::new())]
    pub repair: bool,
    /// With --repair: say what would be done, and do nothing
    #[arg(short = 'n', long, requires = "repair", env = "STILLAGE_DRY_RUN", hide_env = true, value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// With --repair: how long to wait for each lock
    #[arg(long, env = "STILLAGE_WAIT", hide_env = true, default_value = "60s", value_name = "TIME", value_parser = duration_or_none)]
    pub wait: Duration,
}
