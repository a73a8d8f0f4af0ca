//! The unpack process as a program of its own. The daemon runs itself under this name instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    axil_snapshotter::worker::main()
}
