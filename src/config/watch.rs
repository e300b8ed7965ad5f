//! `stillage watch`, as typed.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::FalseyValueParser;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::units;

/// `stillage watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The directory that holds the registry
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    pub root: PathBuf,
    /// Tell first what the journals have since then: 2026-11-26T10:00:00Z, or 1h for an hour ago
    #[arg(long, env = "STILLAGE_SINCE", hide_env = true, value_name = "TIME", value_parser = since)]
    pub since: Option<SystemTime>,
    /// A line of JSON for each event, as without it
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// How many seconds pass between looks at everything where the kernel cannot tell what changes
    #[arg(long, env = "STILLAGE_LOOK_EVERY", hide = true, default_value = "60")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    look_every: u64,
}

impl WatchArgs {
    /// How much time passes between looks at everything, where the kernel cannot tell.
    pub fn look_every(&self) -> Duration {
        Duration::from_secs(self.look_every)
    }
}

/// A time, or how long ago it was.
fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time.into());
    }
    let ago = units::duration(text).map_err(|_| {
        "write a time such as 2026-11-26T10:00:00Z, or 30m, 24h or 7d ago".to_owned()
    })?;
    Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_or_how_long_ago() {
        let time = since("2026-11-26T10:00:00+01:00").unwrap();
        let wanted = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_683_600);
        assert_eq!(time, wanted);
        let begin = since("90m").unwrap();
        let ago = SystemTime::now().duration_since(begin).unwrap();
        assert!((5400..5460).contains(&ago.as_secs()), "{ago:?}");
        for text in ["", "yesterday", "2026-11-26", "10"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
