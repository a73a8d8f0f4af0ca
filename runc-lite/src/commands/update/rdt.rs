//! Intel RDT schemata of a container that has a class of its own or shares a named one.

use super::super::{CommandError, refused};
use super::options::Options;
use crate::resctrl::{self, ResctrlRecord};

/// What to write where, and what was there before.
#[derive(Debug)]
pub(super) struct Change<'a> {
    place: &'a ResctrlRecord,
    lines: Vec<String>,
    earlier: Vec<String>,
}

impl<'a> Change<'a> {
    /// Checks what the flags ask for; `None` when they ask for nothing.
    pub(super) fn plan(
        options: &Options,
        place: Option<&'a ResctrlRecord>,
    ) -> Result<Option<Change<'a>>, CommandError> {
        let root = resctrl::mount_point();
        let enabled = |resource: &str| {
            let root = root.as_ref();
            root.is_ok_and(|root| root.join("info").join(resource).is_dir())
        };
        if options.l3_cache_schema.is_some() && !enabled("L3") {
            return Err(refused("Intel RDT/CAT: l3 cache schema is not enabled"));
        }
        if options.memory_bandwidth_schema.is_some() && !enabled("MB") {
            return Err(refused(
                "Intel RDT/MBA: memory bandwidth schema is not enabled",
            ));
        }
        let asked = [&options.l3_cache_schema, &options.memory_bandwidth_schema];
        let lines: Vec<String> = asked.into_iter().flatten().cloned().collect();
        if lines.is_empty() {
            return Ok(None);
        }
        let Some(place) = place else {
            return Err(refused(
                "updating a non-existent Intel RDT configuration is not supported",
            ));
        };
        let earlier = place.read_lines(&lines)?;
        Ok(Some(Change {
            place,
            lines,
            earlier,
        }))
    }

    /// Writes the schemata, or leaves them as they were.
    pub(super) fn write(&self, warnings: &mut Vec<String>) -> Result<(), CommandError> {
        let written = self.place.write_lines(&self.lines);
        if written.is_err() {
            self.take_back(warnings);
        }
        Ok(written?)
    }

    /// Writes what was there before.
    pub(super) fn take_back(&self, warnings: &mut Vec<String>) {
        if let Err(error) = self.place.write_lines(&self.earlier) {
            warnings.push(crate::error_chain(&error));
        }
    }
}
