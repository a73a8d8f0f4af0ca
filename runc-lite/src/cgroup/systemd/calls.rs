//! The calls of org.freedesktop.systemd1 that the driver makes, and the wait for their jobs.

use std::fmt::Debug;

use zbus::{ObjectPath, Variant};

use super::SystemdError;
use super::bus::{Address, Bus, Call, PATIENCE};
use super::properties::Property;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
/// The interface with the units, in the word of systemd.
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// Jobs end with this signal.
const JOB_REMOVED: &str = "JobRemoved";

/// systemd at the other end of a connection.
#[derive(Debug)]
pub(super) struct Systemd {
    bus: Bus,
    subscribed: bool,
}

impl Systemd {
    pub(super) fn connect(addresses: &[Address]) -> Result<Systemd, SystemdError> {
        let mut bus = Bus::connect(addresses, PATIENCE)?;
        if !bus.is_direct() {
            let hello = call(BUS, BUS_PATH, BUS, "Hello", "Hello");
            bus.call(hello, &())?;
        }
        Ok(Systemd {
            bus,
            subscribed: false,
        })
    }

    /// The number of systemd's version.
    pub(super) fn version(&mut self) -> Result<u32, SystemdError> {
        let text = self.property("Version")?;
        // "252.39-1~deb12u1", "v245.4-1.fc32" and the like.
        let digits = text.trim_start_matches(['v', '"']);
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())]
            .parse()
            .map_err(|_| SystemdError::Malformed {
                call: "Version".to_owned(),
                reason: format!("{text:?} is no version"),
            })
    }

    /// The cgroup of this systemd itself: `/` of the system's.
    pub(super) fn control_group(&mut self) -> Result<String, SystemdError> {
        self.property("ControlGroup")
    }

    fn property(&mut self, name: &str) -> Result<String, SystemdError> {
        let get = call(
            SYSTEMD,
            SYSTEMD_PATH,
            "org.freedesktop.DBus.Properties",
            "Get",
            name,
        );
        let answer = self.bus.call(get, &(INTERFACE, name))?;
        match answer.body::<(Variant<'_>,)>(name)? {
            (Variant::Str(text),) => Ok(text.to_string()),
            (other,) => Err(SystemdError::Malformed {
                call: name.to_owned(),
                reason: format!("its type is {}", other.value_signature()),
            }),
        }
    }

    /// Jobs are told to those who ask for it; systemd's own socket tells them to everybody.
    fn subscribe(&mut self) -> Result<(), SystemdError> {
        if self.subscribed || self.bus.is_direct() {
            return Ok(());
        }
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{SYSTEMD_PATH}',interface='{INTERFACE}',member='{JOB_REMOVED}'"
        );
        let matching = call(BUS, BUS_PATH, BUS, "AddMatch", "AddMatch");
        self.bus.call(matching, &(rule,))?;
        let subscribe = call(SYSTEMD, SYSTEMD_PATH, INTERFACE, "Subscribe", "Subscribe");
        self.bus.call(subscribe, &())?;
        self.subscribed = true;
        Ok(())
    }

    /// Starts the transient scope `unit` and waits until it is there.
    pub(super) fn start_scope(
        &mut self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), SystemdError> {
        // Order: subscribed before the job exists, so that its end is not missed.
        self.subscribe()?;
        let started = match self.start_once(unit, properties) {
            // Left behind by a scope of this name that failed: systemd forgets it when told to.
            Err(SystemdError::Answered { name, .. }) if name.ends_with(".UnitExists") => {
                self.reset_failed(unit)?;
                self.start_once(unit, properties)
            }
            other => other,
        };
        let job = started?;
        let done = self.wait_for(&job, "start", unit);
        if done.is_err() {
            // A unit that failed to start stays known by its failure.
            let _ = self.reset_failed(unit);
        }
        done
    }

    fn start_once(&mut self, unit: &str, properties: &[Property]) -> Result<String, SystemdError> {
        let text = format!("StartTransientUnit of {unit}");
        let start = manager("StartTransientUnit", &text);
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let answer = self
            .bus
            .call(start, &(unit, "replace", pairs(properties), auxiliary))?;
        let (job,) = answer.body::<(ObjectPath<'_>,)>(&text)?;
        Ok(job.to_string())
    }

    /// Changes properties of `unit` until it ends.
    pub(super) fn set_properties(
        &mut self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), SystemdError> {
        let text = format!("SetUnitProperties of {unit}");
        let set = manager("SetUnitProperties", &text);
        self.bus
            .call(set, &(unit, true, pairs(properties)))
            .map(|_| ())
    }

    /// Has systemd put process `pid` into the cgroup `below` the unit's.
    pub(super) fn attach(&mut self, unit: &str, below: &str, pid: i32) -> Result<(), SystemdError> {
        let text = format!("AttachProcessesToUnit of {unit}");
        let attach = manager("AttachProcessesToUnit", &text);
        let pids = vec![pid.unsigned_abs()];
        self.bus.call(attach, &(unit, below, pids)).map(|_| ())
    }

    /// Stops `unit`, waits until it is gone, and has systemd forget how it ended. A unit that is gone
    /// already is no error.
    pub(super) fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.subscribe()?;
        let text = format!("StopUnit of {unit}");
        let stopped = match self
            .bus
            .call(manager("StopUnit", &text), &(unit, "replace"))
        {
            Ok(answer) => {
                let (job,) = answer.body::<(ObjectPath<'_>,)>(&text)?;
                self.wait_for(&job.to_string(), "stop", unit)
            }
            Err(SystemdError::Answered { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
            Err(error) => Err(error),
        };
        // Not loaded any more: the usual case.
        let _ = self.reset_failed(unit);
        stopped
    }

    fn reset_failed(&mut self, unit: &str) -> Result<(), SystemdError> {
        let text = format!("ResetFailedUnit of {unit}");
        let reset = manager("ResetFailedUnit", &text);
        match self.bus.call(reset, &(unit,)) {
            Err(SystemdError::Answered { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn wait_for(&mut self, job: &str, verb: &'static str, unit: &str) -> Result<(), SystemdError> {
        let text = format!("the job to {verb} {unit}");
        loop {
            let signal = self.bus.signal(&text)?;
            if signal.member != JOB_REMOVED {
                continue;
            }
            let (_, removed, _, result) =
                signal.body::<(u32, ObjectPath<'_>, String, String)>(&text)?;
            if removed.as_str() != job {
                continue;
            }
            return match result.as_str() {
                "done" => Ok(()),
                // Ended by itself before the job ran: it is as stopped as it can be.
                "skipped" if verb == "stop" => Ok(()),
                _ => Err(SystemdError::Job {
                    verb,
                    unit: unit.to_owned(),
                    result,
                }),
            };
        }
    }
}

fn call<'a>(
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    method: &'a str,
    text: &'a str,
) -> Call<'a> {
    Call {
        destination,
        path,
        interface,
        method,
        text,
    }
}

fn manager<'a>(method: &'a str, text: &'a str) -> Call<'a> {
    call(SYSTEMD, SYSTEMD_PATH, INTERFACE, method, text)
}

/// As the wire has them: a(sv).
fn pairs(properties: &[Property]) -> Vec<(&str, &Variant<'static>)> {
    properties
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect()
}
