//! The `runc-lite` binary; everything is in the library, see `commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runc_lite::commands::main()
}

/// The runtime lives for milliseconds: pages that are kept cost less than pages that are given back.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
