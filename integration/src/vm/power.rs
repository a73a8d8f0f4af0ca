//! Power cuts: a workload runs in the guest, the power goes at a chosen moment, and the same disk is booted
//! again for a check.
//!
//! What a cut takes away: everything that was in the guest's memory, its page cache above all; and of what it
//! wrote but did not flush, whatever qemu had not yet made part of the disk. What was flushed (fsync, syncfs,
//! O_DSYNC) stays: the host itself goes on running, so its own cache loses nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Lane;
use super::boot::{BOOT_LIMIT, Show};
use super::payload::Payload;
use super::results::Collected;

/// When the power goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// As soon as the console has a line with this text.
    Line(String),
    /// This long after the workload began.
    After(Duration),
}

/// One cut.
#[derive(Debug)]
pub struct Cut<'a> {
    /// What runs until the cut. It need not end by itself.
    pub workload: &'a Payload,
    /// When.
    pub moment: Moment,
    /// What runs on the same disk afterwards; its exit code and files are the answer.
    pub check: &'a Payload,
    /// Which lines of the check's output are shown.
    pub show: Show,
    /// Bound of the workload, and of the check.
    pub limit: Duration,
}

impl Lane {
    /// Runs the workload, cuts the power, boots again, runs the check. `name` names files in the lane's
    /// scratch directory.
    ///
    /// # Errors
    /// When the moment does not come, the machine does not boot again, or the check leaves no results. What the
    /// check found is in its exit code.
    pub fn power_cut(&self, name: &str, cut: &Cut<'_>) -> Result<Collected> {
        let disk = self.disk(name)?;
        let console = self.scratch.join(format!("{name}-before.console"));
        let mut machine = self.boot(&disk, cut.workload, &console)?;
        machine.wait_for("@lane running", BOOT_LIMIT)?;
        match &cut.moment {
            Moment::Line(text) => {
                machine.wait_for(text, cut.limit)?;
            }
            Moment::After(time) => machine.stays_up(*time)?,
        }
        machine.cut_power();
        let console = self.scratch.join(format!("{name}-after.console"));
        let machine = self.boot(&disk, cut.check, &console)?;
        let checked = machine.finish(cut.show, cut.limit);
        checked.context("boot again after the power cut")
    }

    /// Shows that cuts are what they should be: files are written, each acknowledged after its fsync, beside
    /// files nobody syncs. The cut comes right after acknowledgement number `after`. Every acknowledged file
    /// must be there whole, and the last one without a sync must not.
    ///
    /// # Errors
    /// When one is not so, or as [`Lane::power_cut`].
    pub fn check_power_cuts(&self, name: &str, after: u32) -> Result<Collected> {
        let workload = Payload::script(WORKLOAD);
        let check = Payload::script(&format!("after={after}\n{CHECK}"));
        let checked = self.power_cut(
            name,
            &Cut {
                workload: &workload,
                // With its end: 1 is also the beginning of 10.
                moment: Moment::Line(format!("acknowledged {after}.")),
                check: &check,
                show: Show::Progress,
                limit: Duration::from_secs(120),
            },
        )?;
        let found = checked.text("found")?;
        ensure!(
            checked.exit_code == 0,
            "after a power cut: {}",
            found.trim()
        );
        Ok(checked)
    }

    /// Where this lane's files are.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }
}

const WORKLOAD: &str = r#"
mkdir /var/lib/power
sync
for ((i = 1; ; i++)); do
    seq "$i" $((i + 9999)) >"/var/lib/power/unsynced.$i"
    seq "$i" $((i + 9999)) >"/var/lib/power/synced.$i"
    sync "/var/lib/power/synced.$i" || exit 1
    echo "acknowledged $i."
done
"#;

const CHECK: &str = r#"
cd /var/lib/power || exit 1
wrong=0
say() { echo "$*" >>"$RESULTS/found"; }
for ((i = 1; i <= after; i++)); do
    if ! seq "$i" $((i + 9999)) | cmp -s - "synced.$i"; then
        say "synced.$i was acknowledged and is not there whole"
        wrong=1
    fi
done
if seq "$after" $((after + 9999)) | cmp -s - "unsynced.$after"; then
    say "unsynced.$after was never synced and is there: nothing was cut"
    wrong=1
fi
if dmesg | grep -E 'EXT4-fs (error|warning)' >>"$RESULTS/found"; then
    wrong=1
fi
say "$after files that were synced are there, the last one that was not is lost"
exit $wrong
"#;
