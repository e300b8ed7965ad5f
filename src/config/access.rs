//! `stillage access`, as typed.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::{AnonymousMode, ConfigError};
use crate::access;
use crate::oci::RepoName;

/// `stillage access`
#[derive(Debug, Args)]
#[command(override_usage = "stillage access [ROOT] REPO [USER] [OPTIONS]")]
#[command(after_help = "Without USER: everybody whom a directory on the way names.\n\
    With STILLAGE_ROOT set, ROOT is left out, or begins with '/' or '.'.")]
pub struct AccessArgs {
    /// The registry's directory, the repository, and an account or `anonymous`
    #[arg(required = true, num_args = 1..=3, value_names = ["ROOT", "REPO", "USER"])]
    question: Vec<String>,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// The group whose members may do everything, as the server has it
    #[arg(long, env = "STILLAGE_ADMIN_GROUP", hide_env = true, value_name = "GROUP")]
    admin_group: Option<String>,
    /// What the server allows without a login
    #[arg(long, env = "STILLAGE_ANONYMOUS", hide_env = true, value_enum, default_value = "pull")]
    anonymous: AnonymousMode,
}

impl AccessArgs {
    /// Checks what was typed. `root` is what the environment says of ROOT.
    pub fn check(self, root: Option<PathBuf>) -> Result<(access::Question, bool), ConfigError> {
        let mut words = self.question.into_iter();
        let first = words.next().unwrap_or_default();
        let (root, repo) = match root {
            // No repository is called so.
            Some(root) if !first.starts_with(['/', '.']) && words.len() < 2 => (root, Some(first)),
            _ => (PathBuf::from(first), words.next()),
        };
        let repo = repo.ok_or(ConfigError::NoRepository)?;
        let repo = RepoName::parse(&repo).map_err(ConfigError::Repository)?;
        let user = words.next();
        let (admin_group, anonymous) = (self.admin_group, self.anonymous.into());
        Ok((access::Question { root, repo, user, admin_group, anonymous }, self.json))
    }
}
