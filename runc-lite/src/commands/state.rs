//! `state`: print the container's state document.

use super::{CommandError, Globals, only_id, print};
use crate::config::StateDocument;
use crate::container::{Container, Status};

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let container = Container::open(&globals.root, &only_id(parser)?)?;
    let record = &container.record;
    let status = container.status();
    let pid = if status == Status::Stopped {
        0
    } else {
        record.init.map_or(0, |init| init.pid)
    };
    let document = StateDocument {
        oci_version: &record.oci_version,
        id: &record.id,
        status: status.as_str(),
        pid,
        bundle: &record.bundle.to_string_lossy(),
        annotations: &record.annotations,
        rootfs: &record.rootfs.to_string_lossy(),
        created: &record.created,
    };
    let text = serde_json::to_string_pretty(&document)
        .map_err(|e| super::io_error("print", "the state", e.into()))?;
    print(&format!("{text}\n"))
}
