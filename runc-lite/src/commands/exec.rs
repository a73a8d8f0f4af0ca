//! `exec`: run one more program in a running container.

use std::os::fd::AsFd;
use std::path::PathBuf;

use lexopt::prelude::*;

use super::descriptors::{Passed, connect_pidfd_socket, keep_descriptors, send_pidfd};
use super::{
    CommandError, Globals, absolute, io_error, number_value, parse_id, refused, run_sealed,
    text_value, usage,
};
use crate::cgroup::Subgroup;
use crate::config::{Config, Linux, Process};
use crate::container::{Container, Status};
use crate::plan::ProcessPlan;
use crate::process::{AttachRequest, Console, Relay, attach, forward_signals_until_exit};
use crate::spec::plan_process;
use crate::state::{CONFIG_FILE, ContainerId};

#[derive(Debug, Default)]
struct Options {
    process: Option<PathBuf>,
    detach: bool,
    terminal: bool,
    user: Option<(u32, Option<u32>)>,
    cwd: Option<String>,
    env: Vec<String>,
    capabilities: Vec<String>,
    additional_gids: Vec<u32>,
    no_new_privileges: bool,
    apparmor: Option<String>,
    process_label: Option<String>,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    cgroups: Vec<String>,
    preserve_fds: u32,
    ignore_paused: bool,
    args: Vec<String>,
}

fn parse(parser: &mut lexopt::Parser) -> Result<(Options, ContainerId), CommandError> {
    let mut options = Options::default();
    let mut id = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('p') | Long("process") => {
                options.process = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Short('d') | Long("detach") => options.detach = true,
            Short('t') | Long("tty") => options.terminal = true,
            Short('u') | Long("user") => {
                options.user = Some(parse_user(&text_value(parser, "user")?)?);
            }
            Long("cwd") => options.cwd = Some(text_value(parser, "cwd")?),
            Short('e') | Long("env") => options.env.push(text_value(parser, "env")?),
            Short('c') | Long("cap") => options.capabilities.push(text_value(parser, "cap")?),
            Short('g') | Long("additional-gids") => {
                options
                    .additional_gids
                    .push(number_value(parser, "additional-gids")?);
            }
            Long("no-new-privs") => options.no_new_privileges = true,
            Long("apparmor") => options.apparmor = Some(text_value(parser, "apparmor")?),
            Long("pid-file") => {
                options.pid_file = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Long("console-socket") => {
                options.console_socket = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Long("pidfd-socket") => {
                options.pidfd_socket = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Long("process-label") => {
                options.process_label = Some(text_value(parser, "process-label")?);
            }
            Long("cgroup") => {
                options.cgroups.push(text_value(parser, "cgroup")?);
            }
            Long("preserve-fds") => options.preserve_fds = number_value(parser, "preserve-fds")?,
            Long("ignore-paused") => options.ignore_paused = true,
            Value(value) if id.is_none() => id = Some(value),
            Value(value) => {
                // The rest belongs to the program, options and all.
                let rest = std::iter::once(value).chain(parser.raw_args()?);
                options.args = rest
                    .map(|word| {
                        word.into_string()
                            .map_err(|word| usage(format!("argument {word:?} is not valid text")))
                    })
                    .collect::<Result<_, _>>()?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((options, parse_id(id)?))
}

/// `UID` or `UID:GID`, plain decimal numbers and nothing else (CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>), CommandError> {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>()
            .ok()
            .filter(|id| plain && *id != u32::MAX)
    };
    let parsed = match text.split_once(':') {
        None => number(text).map(|uid| (uid, None)),
        Some((uid, gid)) => number(uid)
            .zip(number(gid))
            .map(|(uid, gid)| (uid, Some(gid))),
    };
    parsed.ok_or_else(|| usage(format!("--user {text:?} is not of the form UID[:GID]")))
}

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<u8, CommandError> {
    let (options, id) = parse(parser)?;
    run_sealed(globals)?;
    let container = Container::open(&globals.root, &id)?;
    match container.status() {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => {
            return Err(refused(
                "cannot exec in a paused container (use --ignore-paused)",
            ));
        }
        Status::Stopped | Status::Creating => {
            return Err(refused(format!(
                "cannot exec in a {} container",
                container.status().as_str()
            )));
        }
    }
    let stopped = || refused("cannot exec in a stopped container");
    let init = container.init().ok_or_else(stopped)?;
    // A rootless container may have none.
    let group = container.cgroup();
    let document = container
        .directory
        .read(CONFIG_FILE)?
        .ok_or_else(|| refused("the container's document is gone"))?;
    let config: Config = serde_json::from_slice(&document)
        .map_err(|e| io_error("read", "the container's document", e.into()))?;
    let seccomp = config
        .linux
        .as_ref()
        .and_then(|linux| linux.seccomp.as_ref())
        .filter(|profile| profile.get() != "null");
    let filter = seccomp
        .map(|profile| crate::seccomp::cache::filter(&globals.root, profile.get(), &globals.log))
        .transpose()?;
    if let Some(filter) = &filter {
        filter.check_host()?;
    }
    let linux = config.linux.unwrap_or_default();
    let namespaces = crate::spec::kinds(&linux);
    let plan = plan(&options, config.process.unwrap_or_default(), &linux)?;
    if options.console_socket.is_some() && !options.detach {
        return Err(usage(
            "--console-socket goes with --detach only: in the foreground the runtime has the terminal",
        ));
    }
    let subgroup = Subgroup::parse(&options.cgroups)?;
    let passed = Passed::preserved(options.preserve_fds)?;
    let pidfd_socket = connect_pidfd_socket(options.pidfd_socket.as_deref())?;
    keep_descriptors(passed.count)?;
    // Order: blocked before there is a child, so that no signal is lost.
    let blocked = if options.detach {
        None
    } else {
        let set = crate::sys::block_all_signals();
        Some(set.map_err(|e| io_error("block", "signals", e))?)
    };
    let relay = if options.detach {
        None
    } else {
        let made = Relay::new();
        Some(made.map_err(|e| io_error("make", "the console socket", e))?)
    };
    let console = match (&relay, &options.console_socket) {
        (Some(relay), _) => Console::Runtime(relay.sender()),
        (None, Some(path)) => Console::Socket(path),
        (None, None) => Console::Nobody,
    };
    let attached = attach(&AttachRequest {
        id: id.as_str(),
        init: init.as_fd(),
        namespaces: &namespaces,
        plan: &plan,
        filter: filter.as_ref(),
        cgroup: group.as_deref(),
        resctrl: container.record.resctrl.as_ref(),
        subgroup: subgroup.as_ref(),
        pid_file: options.pid_file.as_deref(),
        console,
        preserve_fds: passed.count,
        record: &container.record,
        log: &globals.log,
    })?;
    globals.log.debug(|| {
        format!(
            "exec in container {:?}: process {} runs {:?}",
            id.as_str(),
            attached.pid,
            plan.args.first().map_or("", String::as_str)
        )
    });
    if let Some(socket) = pidfd_socket
        && let Err(error) = send_pidfd(&socket, &attached.pidfd)
    {
        // The caller waits for the handle in vain. It may have ended by itself meanwhile.
        let _ = crate::sys::send_signal(attached.pidfd.as_fd(), libc::SIGKILL);
        return Err(error);
    }
    let Some(blocked) = blocked else { return Ok(0) };
    let (pid, pidfd) = (attached.pid, attached.pidfd.as_fd());
    let code = match relay.filter(|_| plan.terminal) {
        Some(relay) => relay.until_exit(pid, pidfd, &blocked),
        None => forward_signals_until_exit(pid, pidfd, &blocked),
    };
    let code = code.map_err(|e| io_error("wait for", "the program", e))?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The process to run: the file of `--process`, or the container's own with the options' changes.
fn plan(options: &Options, own: Process, linux: &Linux) -> Result<ProcessPlan, CommandError> {
    let own_capabilities = own.capabilities.clone();
    let mut process = match &options.process {
        Some(path) => crate::process::read_process(path)?,
        None => {
            let mut process = Process {
                args: options.args.clone(),
                terminal: false,
                ..own
            };
            process.env.extend(options.env.iter().cloned());
            process.oom_score_adj = None;
            if let Some((uid, gid)) = options.user {
                process.user.uid = uid;
                process.user.gid = gid.unwrap_or(process.user.gid);
            }
            if let Some(cwd) = &options.cwd {
                process.cwd.clone_from(cwd);
            }
            process
                .user
                .additional_gids
                .extend(&options.additional_gids);
            process.no_new_privileges |= options.no_new_privileges;
            if let Some(label) = &options.process_label {
                process.selinux_label.clone_from(label);
            }
            if let Some(profile) = &options.apparmor {
                process.apparmor_profile.clone_from(profile);
            }
            process
        }
    };
    process.terminal |= options.terminal;
    if process.capabilities.is_none() {
        // Never more than the container has (CVE-2025-27612).
        process.capabilities = own_capabilities;
    }
    if !options.capabilities.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(options.capabilities.iter().cloned());
        }
        // An ambient capability has to be inheritable, and --cap adds none of those: only where the container
        // has some is it asked for.
        if !sets.inheritable.is_empty() {
            sets.ambient.extend(options.capabilities.iter().cloned());
        }
    }
    Ok(plan_process(process, linux)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_plain_numbers() {
        assert_eq!(parse_user("0").unwrap(), (0, None));
        assert_eq!(parse_user("1000:100").unwrap(), (1000, Some(100)));
        for text in [
            "",
            ":",
            "1:",
            ":1",
            "1:1:1",
            " 1",
            "+1",
            "-1",
            "0x0",
            "4294967295",
            "4294967296",
        ] {
            assert!(parse_user(text).is_err(), "{text:?}");
        }
    }
}
