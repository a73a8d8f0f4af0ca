//! What `--help` prints, for the runtime and for each command.

/// Commands with a line about each, in the order of the general help.
const COMMANDS: [Command; 19] = [
    Command {
        name: "create",
        summary: "make a container whose process waits for start",
        arguments: "ID",
        options: &[CREATE],
    },
    Command {
        name: "start",
        summary: "let the process of a created container run its program",
        arguments: "ID",
        options: &[],
    },
    Command {
        name: "run",
        summary: "create and start a container; wait for it and delete it unless detached",
        arguments: "ID",
        options: &[CREATE, RUN],
    },
    Command {
        name: "exec",
        summary: "run one more program in a running container",
        arguments: "ID COMMAND [ARGUMENTS...]  or  exec [options] --process FILE ID",
        options: &[EXEC],
    },
    Command {
        name: "kill",
        summary: "send a signal (TERM) to the first process of a container",
        arguments: "ID [SIGNAL]",
        options: &["   -a, --all   send it to every process of the container\n"],
    },
    Command {
        name: "delete",
        summary: "remove a stopped container and all that was made for it",
        arguments: "ID",
        options: &["   -f, --force   kill it first; an unknown container is no error\n"],
    },
    Command {
        name: "state",
        summary: "print the state of a container",
        arguments: "ID",
        options: &[],
    },
    Command {
        name: "list",
        summary: "list the containers of this root",
        arguments: "",
        options: &[
            "   -q, --quiet            ids only\n   -f, --format FORMAT    table (default) or json\n",
        ],
    },
    Command {
        name: "ps",
        summary: "list the processes of a container",
        arguments: "ID [ARGUMENTS OF ps(1)...]",
        options: &["   -f, --format FORMAT   table (default) or json\n"],
    },
    Command {
        name: "pause",
        summary: "freeze every process of a container; without an id: be the process of a pod",
        arguments: "ID",
        options: &[],
    },
    Command {
        name: "resume",
        summary: "let the processes of a paused container go on",
        arguments: "ID",
        options: &[],
    },
    Command {
        name: "update",
        summary: "change the resources of a running container",
        arguments: "ID",
        options: &[UPDATE],
    },
    Command {
        name: "events",
        summary: "print statistics and out-of-memory events of a container",
        arguments: "ID",
        options: &[
            "   --stats                print the statistics once\n   --interval DURATION    between two prints (5s)\n",
        ],
    },
    Command {
        name: "spec",
        summary: "write a config.json to begin with",
        arguments: "",
        options: &[
            "   -b, --bundle DIR   where to (.)\n   --rootless         for a container of an ordinary user\n",
        ],
    },
    Command {
        name: "features",
        summary: "print what this runtime can do",
        arguments: "",
        options: &[],
    },
    Command {
        name: "checkpoint",
        summary: CHECKPOINT_IS_ABSENT,
        arguments: "",
        options: &[],
    },
    Command {
        name: "restore",
        summary: RESTORE_IS_ABSENT,
        arguments: "",
        options: &[],
    },
    Command {
        name: "help",
        summary: "print this, or the help of a command",
        arguments: "[COMMAND]",
        options: &[],
    },
    Command {
        name: "version",
        summary: "print the version, as --version does",
        arguments: "",
        options: &[],
    },
];

/// Why there is no checkpoint.
pub(super) const CHECKPOINT_IS_ABSENT: &str =
    "not built in: checkpoints need CRIU, which this runtime does not drive";
/// Why there is no restore.
pub(super) const RESTORE_IS_ABSENT: &str =
    "not built in: restoring needs CRIU, which this runtime does not drive";

const CREATE: &str = "\
   -b, --bundle DIR         directory of config.json (.)
   --console-socket SOCKET  receives the master of the container's terminal
   --pid-file FILE          receives the number of the container's first process
   --pidfd-socket SOCKET    receives a handle of the container's first process
   --preserve-fds N         hand N descriptors from 3 on through to the program
   --no-new-keyring         refused: a container has a keyring of its own
   --no-pivot               refused: without pivot_root the host's mounts stay within reach
";

const RUN: &str = "\
   -d, --detach             return once the program runs
   --keep                   do not delete the container when it has ended
   --no-subreaper           accepted: this runtime adopts no orphans
";

const EXEC: &str = "\
   -d, --detach             return once the program runs
   -t, --tty                give the program a terminal
   -u, --user UID[:GID]     who runs it
   -g, --additional-gids G  one more group; may be repeated
   --cwd DIR                its working directory
   -e, --env NAME=VALUE     one more variable; may be repeated
   -c, --cap CAPABILITY     one more capability; may be repeated
   --no-new-privs           it and its children gain no privileges by execve
   --apparmor PROFILE       its AppArmor profile
   --process-label LABEL    its SELinux label
   -p, --process FILE       take all of it from a process document
   --pid-file FILE          receives its number
   --pidfd-socket SOCKET    receives its handle
   --console-socket SOCKET  receives the master of its terminal
   --cgroup [CONTROLLERS:]PATH   run it in a cgroup below the container's
   --ignore-paused          also in a paused container
   --preserve-fds N         hand N descriptors from 3 on through to it
";

const UPDATE: &str = "\
   -r, --resources FILE         take the resources from a JSON document, - is standard input
   --memory BYTES               memory limit
   --memory-reservation BYTES   memory reservation or soft limit
   --memory-swap BYTES          memory and swap together; -1 is no limit
   --kernel-memory BYTES        accepted without effect, as kernels since 5.16 have it
   --kernel-memory-tcp BYTES    TCP buffer memory (cgroup v1)
   --pids-limit N               number of processes
   --cpu-shares N               relative weight
   --cpu-quota MICROSECONDS     CPU time in a period
   --cpu-period MICROSECONDS    length of a period
   --cpu-burst MICROSECONDS     CPU time that may be saved for later periods
   --cpu-rt-period MICROSECONDS
   --cpu-rt-runtime MICROSECONDS
   --cpuset-cpus LIST, --cpuset-mems LIST
   --cpu-idle 0|1               only what others leave
   --blkio-weight N             10 to 1000
   --l3-cache-schema TEXT, --mem-bw-schema TEXT
";

const GLOBAL: &str = "\
   --root DIR            directory of the containers (/run/runc-lite)
   --log FILE            file to write the log to
   --log-format FORMAT   text (default) or json
   --debug               log decisions too, to standard error when there is no --log
   --systemd-cgroup      have systemd make the cgroups; cgroupsPath is slice:prefix:name
   --rootless BOOL       true, false or auto (default): tolerate that cgroups are not ours
   -h, --help
   -v, --version
";

struct Command {
    name: &'static str,
    summary: &'static str,
    arguments: &'static str,
    options: &'static [&'static str],
}

/// The help of the whole program.
pub(super) fn general() -> String {
    let mut text = String::from(
        "NAME:\n   runc-lite - an OCI container runtime\n\n\
         USAGE:\n   runc-lite [global options] COMMAND [options] [arguments]\n\nCOMMANDS:\n",
    );
    for command in &COMMANDS {
        text.push_str(&format!("   {:<11} {}\n", command.name, command.summary));
    }
    text.push_str("\nGLOBAL OPTIONS:\n");
    text.push_str(GLOBAL);
    text
}

/// The help of one command; `None` for one that does not exist.
pub(super) fn of(name: &str) -> Option<String> {
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    let mut text = format!(
        "NAME:\n   runc-lite {name} - {}\n\nUSAGE:\n   runc-lite {name} [options] {}\n\nOPTIONS:\n",
        command.summary, command.arguments
    );
    for options in command.options {
        text.push_str(options);
    }
    text.push_str("   -h, --help\n");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_told_in_general_and_on_its_own() {
        let all = general();
        for command in &COMMANDS {
            assert!(all.contains(command.name));
            let own = of(command.name).unwrap();
            assert!(own.starts_with(&format!("NAME:\n   runc-lite {} - ", command.name)));
        }
        assert_eq!(of("foo"), None);
    }
}
