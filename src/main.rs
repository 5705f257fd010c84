//! The program: parse, log, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    verfs::cli::main()
}
