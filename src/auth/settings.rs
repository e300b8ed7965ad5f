//! How identities are checked: the settings, and what is refused among them at the start.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Group;
use thiserror::Error;

use super::access::Anonymous;
use super::keys::{KeySource, KeysError, Need};
use super::token::RandomError;

/// The PAM service whose file decides, unless told otherwise.
pub const DEFAULT_PAM_SERVICE: &str = "stillage";
/// The program that workers are: this one, also after its file was replaced by a newer one.
pub const DEFAULT_WORKER: &str = "/proc/self/exe";

/// Whether there are logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passwords checked by PAM, tokens for what follows.
    Pam,
    /// Passwords checked by PAM with every request; no tokens. Only administrators write.
    Basic,
    /// No login; every request acts as the account that runs the server.
    None,
}

/// Everything that the room is told.
pub struct Settings {
    /// Whether there are logins.
    pub mode: Mode,
    /// What challenges and tokens call this service.
    pub service_name: String,
    /// The PAM service, a file's name in `/etc/pam.d`. Where there is none, PAM takes `other`.
    pub pam_service: String,
    /// A directory that PAM reads instead of `/etc/pam.d`; absolute.
    pub pam_confdir: Option<PathBuf>,
    /// What those may do who did not log in.
    pub anonymous: Anonymous,
    /// The group whose members may do everything.
    pub admin_group: Option<String>,
    /// Whether uid 0 may log in.
    pub allow_root: bool,
    /// What signs tokens.
    pub keys: Arc<dyn KeySource>,
    /// Numbers and times.
    pub limits: Limits,
    /// The program that is started as a worker, with `pam-worker` as its argument.
    pub worker: PathBuf,
}

/// Numbers and times; the defaults are meant to fit everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many passwords are checked at once. At least two, so that one that hangs leaves one.
    pub workers: usize,
    /// How many checks may wait for a worker.
    pub queue: usize,
    /// How long a check may wait, and then how long it may take.
    pub deadline: Duration,
    /// A refusal comes at a multiple of this time after the request began.
    pub failure_floor: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        // One check of yescrypt takes 16 MB and all of one core: more at once are slower, not faster.
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
        Limits {
            workers: cores.clamp(2, 4),
            queue: 128,
            deadline: Duration::from_secs(10),
            failure_floor: Duration::from_millis(1500),
        }
    }
}

impl Settings {
    /// The defaults: service `stillage` in both senses, anonymous nothing, no root.
    pub fn new(mode: Mode, keys: Arc<dyn KeySource>) -> Settings {
        Settings {
            mode,
            service_name: "stillage".to_owned(),
            pam_service: DEFAULT_PAM_SERVICE.to_owned(),
            pam_confdir: None,
            anonymous: Anonymous::Nothing,
            admin_group: None,
            allow_root: false,
            keys,
            limits: Limits::default(),
            worker: DEFAULT_WORKER.into(),
        }
    }

    /// The number of the admin group, by the name service.
    pub(super) fn admins(&self) -> Result<Option<u32>, StartError> {
        let Some(name) = &self.admin_group else { return Ok(None) };
        match Group::from_name(name) {
            Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
            Ok(None) => Err(StartError::NoGroup(name.clone())),
            Err(source) => Err(StartError::GroupUntold { name: name.clone(), source }),
        }
    }

    pub(super) fn validate(&self) -> Result<(), StartError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let service = &self.pam_service;
        // PAM takes the name as that of a file, and folds it to lower case itself.
        if service.is_empty()
            || service.len() > 64
            || service.starts_with('.')
            || !service.chars().all(plain)
        {
            return Err(StartError::Service(service.clone()));
        }
        if let Some(dir) = self.pam_confdir.as_ref().filter(|dir| !dir.is_absolute()) {
            return Err(StartError::Confdir(dir.clone()));
        }
        if self.mode == Mode::Basic && self.admin_group.is_none() {
            return Err(StartError::NobodyWrites);
        }
        if *self.keys.keys(Need::Sign)?.current.secret == [0; 32] {
            return Err(StartError::Key);
        }
        Ok(())
    }
}

/// Why identities cannot be checked with these settings.
#[derive(Debug, Error)]
pub enum StartError {
    /// The PAM service is no file's name.
    #[error("PAM service {0:?}: use letters, digits, '-', '_' and '.'")]
    Service(String),
    /// PAM would look for the directory beneath wherever the worker stands.
    #[error("{}: the directory of PAM services must be an absolute path", .0.display())]
    Confdir(PathBuf),
    /// There is no such group.
    #[error("--admin-group {0:?}: this host has no such group, make it with groupadd")]
    NoGroup(String),
    /// The name service did not say whether there is such a group.
    #[error("--admin-group {name:?}: the name service failed: {source}")]
    GroupUntold {
        /// The group.
        name: String,
        /// What the name service said.
        source: Errno,
    },
    /// With Basic only administrators write, and there are none.
    #[error("with basic logins only administrators may push: an admin group is needed")]
    NobodyWrites,
    /// Nobody wrote a key into the array.
    #[error("the key that signs tokens is all zeros")]
    Key,
    /// There is no key.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The system gives no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}
