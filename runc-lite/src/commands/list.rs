//! `list`: every container below `--root`.

use lexopt::prelude::*;
use serde::Serialize;

use super::{CommandError, Globals, print, text_value, usage};
use crate::container::{Container, Status};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    oci_version: String,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
}

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let (mut quiet, mut format) = (false, "table".to_owned());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('q') | Long("quiet") => quiet = true,
            Short('f') | Long("format") => format = text_value(parser, "format")?,
            other => return Err(other.unexpected().into()),
        }
    }
    let mut rows = Vec::new();
    for id in crate::state::list(&globals.root)? {
        // Deleted since it was listed, or unreadable: delete --force is for those.
        let Ok(container) = Container::open(&globals.root, &id) else {
            continue;
        };
        rows.push(row(&container));
    }
    let text = match (quiet, format.as_str()) {
        (true, _) => rows.iter().map(|row| format!("{}\n", row.id)).collect(),
        (false, "table") => table(&rows),
        (false, "json") => serde_json::to_string(&rows)
            .map_err(|e| super::io_error("print", "the list", e.into()))?,
        (false, other) => return Err(usage(format!("--format {other:?} is not table or json"))),
    };
    print(&text)
}

fn row(container: &Container) -> Row {
    let record = &container.record;
    let status = container.status();
    Row {
        oci_version: record.oci_version.clone(),
        id: record.id.clone(),
        pid: if status == Status::Stopped {
            0
        } else {
            record.init.map_or(0, |init| init.pid)
        },
        status: status.as_str(),
        bundle: record.bundle.display().to_string(),
        rootfs: record.rootfs.display().to_string(),
        created: record.created.clone(),
    }
}

fn table(rows: &[Row]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(str::to_owned);
    let mut lines = vec![header];
    for row in rows {
        lines.push([
            row.id.clone(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.clone(),
            row.created.clone(),
        ]);
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(&line[4]);
        text.push('\n');
    }
    text
}
