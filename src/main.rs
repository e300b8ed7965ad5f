//! The command line: parses arguments, calls one command, prints the error.

fn main() {}
