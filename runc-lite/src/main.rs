//! The `runc-lite` binary; everything is in the library, see `commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runc_lite::commands::main()
}
