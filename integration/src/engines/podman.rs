//! podman with a store and a run directory of its own, and `runc-lite` as its OCI runtime.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{Answer, EngineLab, IMAGE, ask, ask_on_terminal};

/// podman's command line for one test.
#[derive(Debug)]
pub struct Podman<'a> {
    lab: &'a EngineLab,
    dir: PathBuf,
    driver: &'static str,
    /// User and group the commands run as; `None` for root.
    user: Option<u32>,
}

impl<'a> Podman<'a> {
    /// podman as root, with the image in its store.
    ///
    /// # Panics
    /// When the image cannot be made or imported.
    #[must_use]
    pub fn as_root(lab: &'a EngineLab) -> Self {
        let podman = Self {
            lab,
            dir: lab.dir().join("podman"),
            driver: "overlay",
            user: None,
        };
        podman
            .import()
            .unwrap_or_else(|error| panic!("import the image: {error:#}"));
        podman
    }

    /// podman as the ordinary user and group `id`, whose home directory is `dir`.
    ///
    /// # Panics
    /// When the image cannot be made or imported.
    #[must_use]
    pub fn as_user(lab: &'a EngineLab, id: u32, dir: PathBuf) -> Self {
        let podman = Self {
            lab,
            dir,
            driver: "vfs",
            user: Some(id),
        };
        podman
            .import()
            .unwrap_or_else(|error| panic!("import the image: {error:#}"));
        podman
    }

    fn import(&self) -> Result<()> {
        let archive = self.lab.rootfs_archive()?;
        let archive = archive.to_string_lossy();
        let change = "--change=ENV PATH=/bin:/sbin";
        let _ = self
            .call(&["import", "--quiet", change, &archive, IMAGE])
            .ok();
        Ok(())
    }

    /// The command `podman ARGS`.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.user {
            None => Command::new("podman"),
            Some(id) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={id}"))
                    .arg(format!("--regid={id}"))
                    .args(["--clear-groups", "--", "podman"]);
                command
            }
        };
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.dir.join(name));
        }
        command
            .arg(format!("--storage-driver={}", self.driver))
            .args(["--cgroup-manager=cgroupfs", "--events-backend=file"])
            .arg(format!("--runtime={}", self.lab.runtime().display()))
            .args(args)
            .env("HOME", &self.dir)
            .env("XDG_RUNTIME_DIR", &self.dir)
            .env("TMPDIR", &self.dir)
            .env_remove("CONTAINERS_CONF")
            .env_remove("CONTAINERS_STORAGE_CONF")
            .current_dir("/");
        command
    }

    /// Runs `podman ARGS`.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Answer {
        ask(&self.command(args), &[])
    }

    /// `podman run --rm` without a network: `options`, the image, and `sh -c script`.
    #[must_use]
    pub fn run(&self, options: &[&str], script: &str) -> Answer {
        self.run_program(options, &["sh", "-c", script])
    }

    /// `podman run --rm` without a network: `options`, the image, and a program.
    #[must_use]
    pub fn run_program(&self, options: &[&str], program: &[&str]) -> Answer {
        ask(&self.command(&self.run_arguments(options, program)), &[])
    }

    /// The same with something on standard input.
    #[must_use]
    pub fn run_with_input(&self, options: &[&str], program: &[&str], input: &str) -> Answer {
        let arguments = self.run_arguments(options, program);
        ask(&self.command(&arguments), input.as_bytes())
    }

    /// The same with a terminal on both sides.
    #[must_use]
    pub fn run_on_terminal(&self, options: &[&str], script: &str) -> Answer {
        let options = [&["--interactive", "--tty"], options].concat();
        let arguments = self.run_arguments(&options, &["sh", "-c", script]);
        ask_on_terminal(&self.command(&arguments))
    }

    /// Starts a container that stays, named `name`, running `script`.
    #[must_use]
    pub fn start(&self, name: &str, options: &[&str], script: &str) -> Answer {
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(self.placement());
        arguments.extend(options);
        arguments.extend([IMAGE, "sh", "-c", script]);
        self.call(&arguments)
    }

    fn run_arguments<'b>(&'b self, options: &[&'b str], program: &[&'b str]) -> Vec<&'b str> {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(self.placement());
        arguments.extend(options);
        arguments.push(IMAGE);
        arguments.extend(program);
        arguments
    }

    /// Below the test's cgroup; no network that would need a plugin; limits this machine lets be set.
    fn placement(&self) -> Vec<&str> {
        let mut options = vec!["--network=none"];
        if self.user.is_none() {
            options.extend(["--cgroup-parent", self.lab.cgroup()]);
        }
        options
    }

    /// What `podman inspect --format` prints about a container.
    #[must_use]
    pub fn inspect(&self, name: &str, format: &str) -> String {
        self.call(&["inspect", "--format", format, name]).ok()
    }
}
