//! The processes of a container: the parent that the caller started, an intermediate one where init must
//! be born into an existing PID namespace, init itself, and later processes (`exec`).

mod attach;
mod bundle;
mod courier;
mod environment;
mod error;
mod gate;
pub mod hooks;
mod host;
mod id_programs;
mod identity;
mod init;
mod intermediate;
mod joins;
pub mod message;
mod net_devices;
mod parent;
mod placement;
mod program;
mod relay;
mod scheduling;
mod sealed;
mod terminal;
mod time_namespace;
mod undo;
mod user_namespace;
mod wait;

pub use attach::{AttachRequest, Attached, attach};
pub use bundle::read_process;
pub use error::ProcessError;
pub use gate::{is_waiting, open as open_gate, start};
pub use net_devices::NetDeviceError;
pub use parent::{CreateRequest, Created, create};
pub(crate) use parent::{agent_state, state_text};
pub use relay::Relay;
pub use sealed::run_from_sealed_copy;
pub use terminal::Console;
pub(crate) use wait::timespec;
pub use wait::{KILL_PATIENCE, forward_signals_until_exit, wait_for_exit};
