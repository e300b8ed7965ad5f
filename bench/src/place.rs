//! Where a run takes place: a directory of its own on a real file system, and the programs.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// tmpfs and ramfs, as statfs(2) names them: what is measured there is no disk.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The directory of a run, removed at its end, and what is measured in it.
pub(crate) struct Place {
    dir: TempDir,
    /// The build of Stillage that is measured.
    pub(crate) stillage: PathBuf,
}

impl Place {
    /// In `STILLAGE_BENCH_DIR` or /var/tmp; measures `STILLAGE_BENCH_BINARY` or the release build.
    pub(crate) fn new() -> Result<Place> {
        let above = std::env::var_os("STILLAGE_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("stillage-bench-").tempdir_in(&above);
        let dir = dir.with_context(|| format!("a directory in {}", Path::new(&above).display()))?;
        let kind = rustix::fs::statfs(dir.path()).context("statfs")?.f_type.cast_unsigned();
        ensure!(
            !IN_MEMORY.contains(&kind),
            "{} is in memory: name a directory on a disk with STILLAGE_BENCH_DIR",
            Path::new(&above).display()
        );
        let binary = std::env::var_os("STILLAGE_BENCH_BINARY");
        let stillage =
            PathBuf::from(binary.context("STILLAGE_BENCH_BINARY is not set: bench/run does that")?);
        ensure!(stillage.is_file(), "{} is not there: bench/run builds it", stillage.display());
        Ok(Place { dir, stillage })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new empty directory, for one server or one tree.
    pub(crate) fn room(&self, name: &str) -> Result<PathBuf> {
        let room = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&self.dir)?;
        Ok(room.keep())
    }
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    let found = |dir: PathBuf| dir.join(program).is_file();
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(found))
}

/// What a program says, stdout before stderr; empty if it cannot be started.
pub(crate) fn said(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// A port of 127.0.0.1 that was free a moment ago, for servers that do not say which one they took.
pub(crate) fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?;
    Ok(listener.local_addr()?)
}
