//! A virtual machine: qemu's command line, its disks, and the running machine with its ends.
//!
//! ```text
//!  disk     what                      form                                       after a power cut
//!  root     overlay over the image    qcow2, the guest's flushes reach the host  stays, as far as flushed
//!  payload  a tar archive             raw, read-only                             unchanged
//!  results  empty, then a tar archive raw                                        worthless
//! ```

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::console::{Console, MARK};
use super::image::Image;
use super::payload::Payload;
use super::results::{self, Collected};
use crate::children::{self, Running};
use crate::say::out;

/// How long KVM gets to boot as far as the initramfs; a machine where it works needs about a second.
const PROBE_LIMIT: Duration = Duration::from_secs(15);
/// How long a guest gets to boot, on a loaded machine under TCG.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a guest gets to turn itself off once its results are on the disk.
const OFF_LIMIT: Duration = Duration::from_secs(60);
/// What a guest can bring back.
const RESULTS_SIZE: u64 = 256 << 20;

/// Cgroup v2 alone, a quiet console, no second try after a panic, and
/// no look at how fast the timer ticks, which an emulated machine on a busy host fails ("IO-APIC + timer doesn't
/// work", kernel-parameters.txt).
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check \
    systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all \
    systemd.machine_id=6178696c6c616e656178696c6c616e65 \
    systemd.show_status=0 systemd.log_target=journal random.trust_cpu=on mitigations=off";

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, by the kernel.
    Kvm,
    /// qemu's translator: ten to twenty times slower, works everywhere.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// The one big security module of a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecurityModule {
    /// AppArmor, without profiles of the distribution.
    #[default]
    AppArmor,
    /// SELinux with Debian's policy. It permits all and only says what it would not: the guest's files have no
    /// labels.
    Selinux,
}

impl SecurityModule {
    /// As the kernel and the guard of the tests name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AppArmor => "apparmor",
            Self::Selinux => "selinux",
        }
    }

    fn kernel_arguments(self) -> String {
        let name = self.name();
        let more = match self {
            Self::AppArmor => "",
            Self::Selinux => " enforcing=0",
        };
        format!("lsm=landlock,lockdown,yama,{name},bpf {name}=1{more}")
    }
}

/// Size of a guest.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    /// Memory.
    pub memory_mib: u32,
    /// Processors.
    pub processors: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            memory_mib: 1536,
            processors: 2,
        }
    }
}

/// What machines of a lane have in common.
#[derive(Debug)]
pub struct Hardware<'a> {
    /// Kernel, initramfs.
    pub image: &'a Image,
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// Size.
    pub resources: Resources,
    /// Security module.
    pub module: SecurityModule,
}

impl Hardware<'_> {
    /// qemu, so far without a disk. It ends when the thread that starts it does, also when that is killed.
    fn command(&self, arguments: &str) -> Command {
        let module = self.module.kernel_arguments();
        let appended = format!("{KERNEL_ARGUMENTS} {module} {arguments}");
        let mut command = Command::new("setpriv");
        let (accelerator, processor) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", "q35"])
            .args(["-accel", accelerator, "-cpu", processor])
            .args(["-smp", &self.resources.processors.to_string()])
            .args(["-m", &self.resources.memory_mib.to_string()])
            .arg("-kernel")
            .arg(self.image.vmlinuz())
            .arg("-initrd")
            .arg(self.image.initramfs())
            .args(["-append", &appended])
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-serial", "chardev:console"])
            .args(["-device", "virtio-rng-pci"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }
}

/// A comma in a file name of an option is written twice (qemu(1), "-drive").
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn drive(command: &mut Command, name: &str, path: &Path, options: &str) {
    let file = escaped(path);
    let drive = format!("file={file},if=none,id={name},{options}");
    let device = format!("virtio-blk-pci,drive={name},serial={name}");
    command.args(["-drive", &drive, "-device", &device]);
}

/// A root disk that machines are booted on, one after the other; removed when dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Lays an empty disk over `base`.
    ///
    /// # Errors
    /// When qemu-img fails.
    pub fn over(base: &Path, path: &Path) -> Result<Self> {
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([base, path]);
        let done = children::output(&mut command, &[])?;
        ensure!(done.status.success(), "qemu-img create: {}", done.text());
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Ignored: the next run writes over it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Finds out whether KVM boots the image's kernel: having the device is not enough, some machines lend a
/// `/dev/kvm` that stock kernels hang under.
///
/// # Errors
/// When qemu cannot be started at all.
pub fn probe(image: &Image, scratch: &Path) -> Result<Accelerator> {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        out("    no /dev/kvm: TCG");
        return Ok(Accelerator::Tcg);
    }
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(device) {
        out(format!("    /dev/kvm cannot be opened ({error}): TCG"));
        return Ok(Accelerator::Tcg);
    }
    let hardware = Hardware {
        image,
        accelerator: Accelerator::Kvm,
        resources: Resources {
            memory_mib: 256,
            processors: 1,
        },
        module: SecurityModule::default(),
    };
    let errors = scratch.join("probe.err");
    let mut command = hardware.command("axil.probe");
    command.stderr(File::create(&errors).context("create the probe's error file")?);
    let (mut process, mut console) = launch(&mut command, &scratch.join("probe.console"))?;
    let booted = console.wait_for("@lane probe", PROBE_LIMIT).is_ok();
    process.kill();
    if booted {
        return Ok(Accelerator::Kvm);
    }
    let said = fs::read_to_string(&errors).unwrap_or_default();
    let said = said.lines().next().unwrap_or("it hung").to_owned();
    out(format!(
        "    KVM does not boot the guest's kernel ({said}): TCG"
    ));
    Ok(Accelerator::Tcg)
}

fn launch(command: &mut Command, log: &Path) -> Result<(Running, Console)> {
    let mut process = Running::start(command)?;
    let stdout = process.take_stdout().context("qemu has no output")?;
    Ok((process, Console::read(stdout, log)?))
}

/// Starts a machine and goes on at once.
///
/// # Errors
/// When a disk cannot be written or qemu not be started.
pub fn start(
    hardware: &Hardware<'_>,
    disk: &Disk,
    payload: &Payload,
    console: &Path,
) -> Result<Machine> {
    let payload_disk = console.with_extension("payload");
    payload.write(&payload_disk)?;
    let results = console.with_extension("results");
    let empty = File::create(&results).with_context(|| format!("create {}", results.display()))?;
    empty
        .set_len(RESULTS_SIZE)
        .context("size the results disk")?;
    let mut command = hardware.command("");
    // writeback: a write is done when qemu has it, a flush when the host's disk has it; so what the guest never
    // flushed may be lost by a kill, and what it flushed may not.
    drive(
        &mut command,
        "root",
        &disk.path,
        "format=qcow2,cache=writeback,discard=unmap",
    );
    drive(
        &mut command,
        "payload",
        &payload_disk,
        "format=raw,readonly=on",
    );
    drive(&mut command, "results", &results, "format=raw,cache=unsafe");
    let errors = console.with_extension("err");
    command.stderr(File::create(&errors).with_context(|| format!("create {}", errors.display()))?);
    let (process, lines) = launch(&mut command, console)?;
    Ok(Machine {
        process,
        console: lines,
        disks: [payload_disk, results],
        errors,
        begun: Instant::now(),
    })
}

/// Which lines of a payload's output are shown while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Those that begin with `@lane progress`.
    Progress,
    /// All.
    Everything,
}

/// A machine that runs; dropping it cuts its power.
#[derive(Debug)]
pub struct Machine {
    process: Running,
    console: Console,
    disks: [PathBuf; 2],
    errors: PathBuf,
    begun: Instant,
}

impl Machine {
    /// Waits for a line of the console that contains `text`, and answers it.
    ///
    /// # Errors
    /// When it does not come within `limit`; the message has the console's last lines.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let waited = self.console.wait_for(text, limit);
        waited.with_context(|| self.last_words())
    }

    /// Lets `time` pass while the machine runs.
    ///
    /// # Errors
    /// When it ends before.
    pub fn stays_up(&mut self, time: Duration) -> Result<()> {
        match self.process.wait(time) {
            None => Ok(()),
            Some(status) => bail!("the guest ended ({status}); {}", self.console.tail()),
        }
    }

    /// Ends the machine at once, as a power cut does: SIGKILL for qemu. What the guest had in its memory is
    /// lost, and so are writes it never flushed where they are new to the disk.
    pub fn cut_power(mut self) {
        self.process.kill();
        self.remove_disks();
    }

    /// Waits at most `limit` for the payload to end, and answers what it left.
    ///
    /// # Errors
    /// When the payload does not begin or end in time, or the machine ends without results.
    pub fn finish(mut self, show: Show, limit: Duration) -> Result<Collected> {
        self.wait_for("@lane running", BOOT_LIMIT)?;
        let booted = self.begun.elapsed();
        let running = Instant::now();
        let deadline = running + limit;
        loop {
            let line = self.console.next(deadline);
            let line = line.with_context(|| format!("the guest did not end within {limit:?}"))?;
            let Some(line) = line else {
                bail!("the guest ended too early; {}", self.console.tail());
            };
            match (line.strip_prefix(MARK), show) {
                (Some("collected"), _) => break,
                (Some(text), _) => {
                    if let Some(progress) = text.strip_prefix("progress ") {
                        out(format!("    {progress}"));
                    }
                }
                (None, Show::Everything) => out(line),
                (None, Show::Progress) => {}
            }
        }
        let ran = running.elapsed();
        if self.process.wait(OFF_LIMIT).is_none() {
            bail!("the guest did not turn itself off within {OFF_LIMIT:?}");
        }
        let (exit_code, files) = results::read(&self.disks[1])?;
        self.remove_disks();
        Ok(Collected {
            exit_code,
            files,
            booted,
            ran,
        })
    }

    fn last_words(&self) -> String {
        let errors = fs::read_to_string(&self.errors).unwrap_or_default();
        let errors = errors.trim();
        if errors.is_empty() {
            return "the guest is not as expected".to_owned();
        }
        format!("qemu said: {errors}")
    }

    fn remove_disks(&self) {
        for path in &self.disks {
            // Ignored: the whole scratch directory goes in the end.
            let _ = fs::remove_file(path);
        }
    }
}
