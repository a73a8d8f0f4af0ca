//! Thin typed system calls that neither std nor rustix offers; no policy lives here.

mod bpf;
mod clone;
mod exec;
mod mount;
mod namespace;
mod scheduling;
mod signal;

pub use bpf::{
    BpfInstruction, SECCOMP_NEW_LISTENER, attach_device_program, detach_device_program,
    device_programs, load_device_program, load_seccomp, seccomp_knows,
};
pub use clone::{CloneFlags, Forked, clone3, exit_now, unshare};
pub use exec::{
    Arguments, close_all_except, close_range, exec, exec_fd, join_session_keyring, set_personality,
};
pub use mount::{MountAttributes, mount_setattr};
pub use namespace::namespace_type;
pub use scheduling::{
    SchedulingAttributes, set_cpu_affinity, set_io_priority, set_memory_policy, set_scheduler,
};
pub use signal::{
    SignalSet, block_all_signals, exit_on_termination, read_signal, restore_default_signals,
    send_signal, signal_descriptor, wait_for_signal,
};
