//! Plugins that outlived a killed daemon: they are ended before their work is undone, because a
//! late ADD behind a DEL would leak what it makes.

use std::{
    fs::{self, File},
    io::Read,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The kernel's own bound of an environment is larger; a plugin's is a few hundred bytes.
const MAX_ENVIRONMENT: u64 = 256 << 10;

/// Kills every process that runs as a plugin for this pod; returns how many.
pub(crate) fn kill_plugins_of(pod: &str) -> usize {
    let marker = format!("CNI_CONTAINERID={pod}");
    // Without /proc there is nobody to be found; DEL is tried all the same.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| Pid::from_raw(*pid).is_some_and(|pid| kill_if_marked(pid, &marker)))
        .count()
}

fn kill_if_marked(pid: Pid, marker: &str) -> bool {
    // Order: the descriptor first, so that what is read belongs to what is killed.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    let mut environment = Vec::new();
    let Ok(file) = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
        return false;
    };
    if file
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut environment)
        .is_err()
    {
        return false;
    }
    let mut variables = environment.split(|byte| *byte == 0);
    variables.any(|variable| variable == marker.as_bytes())
        && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_plugin_of_the_pod_dies() {
        let pod = format!("stray-test-{}", std::process::id());
        let start = |id: &str| {
            Command::new("sleep")
                .arg("60")
                .env("CNI_CONTAINERID", id)
                .spawn()
        };
        let (mut ours, mut other) = (start(&pod).unwrap(), start(&format!("{pod}x")).unwrap());
        // The kernel shows the environment a moment after exec has let the parent go on.
        let killed = (0..10_000)
            .map(|_| kill_plugins_of(&pod))
            .find(|killed| *killed > 0);
        assert_eq!(killed, Some(1));
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
