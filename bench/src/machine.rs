//! Where it was measured, and with what.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::place::{Place, said};

/// A machine and the programs on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    /// In bytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    pub(crate) time: String,
    pub(crate) commit: String,
    /// What else the machine has to do: processes that want to run, over a minute, five and fifteen.
    #[serde(default)]
    pub(crate) load: String,
    /// What each program says of its version.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn here(place: &Place) -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10;
        let versions = [
            ("stillage", said(&place.stillage.to_string_lossy(), &["--version"])),
            ("nginx", said("nginx", &["-v"])),
            ("docker-registry", said("docker-registry", &["--version"])),
            ("rustc", said("rustc", &["--version"])),
        ];
        Machine {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory,
            kernel: said("uname", &["-sr"]),
            file_system: file_system(place.path()),
            time: said("date", &["-u", "+%FT%TZ"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            versions: versions.map(|(name, version)| (name.to_owned(), version)).into(),
        }
    }
}

/// Type and options of the mount that a path lies on.
fn file_system(path: &Path) -> String {
    said("findmnt", &["-n", "-o", "FSTYPE,OPTIONS", "-T", &path.to_string_lossy()])
}
