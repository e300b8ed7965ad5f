//! `stillage check`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use stillage::config::CheckArgs;
use stillage::layout::RealDisk;
use stillage::upkeep::check::{self, Progress, Repairs};

use super::owner::become_keeper;
use super::{DAMAGE, Outcome, PARTLY};

/// Reports what is wrong, and puts it right if asked to.
pub(crate) fn run(args: &CheckArgs) -> Outcome {
    let progress = Arc::new(Progress::default());
    let options = check::Options {
        allow_sparse: args.allow_sparse,
        quick: args.quick,
        progress: Arc::clone(&progress),
    };
    let (dry_run, wait) = (args.dry_run, args.wait);
    let repairs = args.repair.then(|| Repairs { dry_run, wait, disk: Arc::new(RealDisk) });
    if repairs.is_some() && !dry_run {
        // Every file and directory is made with the mode that it is to have.
        rustix::process::umask(rustix::fs::Mode::empty());
        become_keeper(&args.root)?;
    }
    let format = if args.json { check::report::Format::Json } else { check::report::Format::Text };
    let shown = Shown::start(progress);
    let mut out = Beside { bar: shown.bar(), out: io::stdout().lock() };
    let summary = check::report::run(&args.root, options, repairs, format, &mut out)?;
    out.flush()?;
    drop(shown);
    Ok(match summary.is_damaged() {
        _ if summary.blocked => ExitCode::from(PARTLY),
        true => ExitCode::from(DAMAGE),
        false if summary.failed => ExitCode::from(PARTLY),
        false => ExitCode::SUCCESS,
    })
}

/// What goes to a terminal goes above the line that says how far it is.
struct Beside<W> {
    bar: Option<ProgressBar>,
    out: W,
}

impl<W: Write> Write for Beside<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.out.write(bytes)),
            None => self.out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A line on the terminal that says how far it is. It goes when this is dropped.
struct Shown(Option<(ProgressBar, std::sync::mpsc::Sender<()>)>);

impl Shown {
    /// Nothing where nobody looks on.
    fn start(progress: Arc<Progress>) -> Shown {
        if !io::stderr().is_terminal() {
            return Shown(None);
        }
        let bar = ProgressBar::new_spinner();
        let style = "{spinner} {msg} blobs, {bytes} read, {bytes_per_sec}, {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let line = bar.clone();
        std::thread::spawn(move || {
            let tick = Duration::from_millis(200);
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(tick) {
                line.set_message(progress.names().to_string());
                line.set_position(progress.bytes());
                line.tick();
            }
        });
        Shown(Some((bar, end)))
    }

    fn bar(&self) -> Option<ProgressBar> {
        self.0.as_ref().map(|(bar, _)| bar.clone())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some((bar, end)) = self.0.take() {
            drop(end);
            bar.finish_and_clear();
        }
    }
}
