//! Measures Stillage beside nginx and Debian's docker-registry, in turns: see `bench/run --help` and
//! docs/performance.md.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | the command line |
//! | [`place`] | the directory of a run, and the programs that take part |
//! | [`content`], [`trees`] | what is pushed and pulled; trees written as files, without a server |
//! | [`servers`] | starts and stops each server |
//! | [`client`], [`crowd`] | an HTTP/1.1 client that costs little; many of them at once |
//! | [`process`], [`measure`], [`stats`] | what a turn of a server cost; whose turn it is; medians |
//! | [`floors`] | what the machine itself takes: a hash, a write, an fsync |
//! | [`works`] | one file for each work that is measured |
//! | [`goals`] | the goals, as data |
//! | [`report`] | JSON, table, pictures |
//! | [`short`] | the counts that noise cannot move, for tests/run |
//! | [`machine`] | where it was measured, and with what |

mod args;
mod client;
mod content;
mod crowd;
mod floors;
mod goals;
mod machine;
mod measure;
mod place;
mod process;
mod report;
mod servers;
mod short;
mod stats;
mod trees;
mod works;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The floor of receiving is a server of its own process, so that it is measured as the others are.
    if args == [servers::receive::COMMAND] {
        return servers::receive::serve();
    }
    let Some(args) = args::Args::parse(&args)? else {
        print!("{}", args::USAGE);
        return Ok(());
    };
    if args.list {
        for work in works::ALL {
            println!("{:<12} {}", work.name, work.about);
        }
        return Ok(());
    }
    if args.short {
        return short::run(args.write, args.instructions);
    }
    report::run(&args)
}
