//! `stillage check`, as typed.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

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
}
