//! `list`: every container below `--root`.

use lexopt::prelude::*;
use serde::Serialize;

use super::{CommandError, Globals, io_error, print, text_value, usage};
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
    owner: String,
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
    if !matches!(format.as_str(), "table" | "json") {
        return Err(usage(format!("--format {format:?} is not table or json")));
    }
    if globals.root_is_given {
        let fail = |e| io_error("list", globals.root.display().to_string(), e);
        std::fs::metadata(&globals.root).map_err(fail)?;
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
        (false, _) => {
            let fail = |e: serde_json::Error| io_error("print", "the list", e.into());
            serde_json::to_string(&rows).map_err(fail)? + "\n"
        }
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
        owner: owner(container.directory.owner()),
    }
}

/// The name of a user of the host, its number when it has none.
fn owner(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

fn table(rows: &[Row]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let mut lines = vec![header];
    for row in rows {
        lines.push([
            row.id.clone(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.clone(),
            row.created.clone(),
            row.owner.clone(),
        ]);
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3), width(4)];
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(&line[5]);
        text.push('\n');
    }
    text
}
