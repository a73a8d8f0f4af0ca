//! The program of a container: arguments, environment, working directory.

use super::{ContainerInput, ImageDefaults, OciError, clean_container_path};
use crate::domain::container::spec::ContainerSpec;
use crate::domain::container::user::ResolvedUser;
use crate::domain::pod::user_namespace::IdMappings;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line. A command of the request replaces the image's entrypoint and its command; arguments of the
/// request alone replace the image's command.
pub(super) fn args(
    container: &ContainerSpec,
    image: &ImageDefaults,
) -> Result<Vec<String>, OciError> {
    let (command, args) = if !container.command.is_empty() {
        (&container.command, container.args.as_slice())
    } else if !container.args.is_empty() {
        (&image.entrypoint, container.args.as_slice())
    } else {
        (&image.entrypoint, image.cmd.as_slice())
    };
    // ENTRYPOINT [""] is how an image takes its base's entrypoint away.
    let reset = container.command.is_empty() && *command == [""];
    let command = if reset { &[] } else { command.as_slice() };
    let line: Vec<String> = command.iter().chain(args).cloned().collect();
    if line.first().is_none_or(String::is_empty) {
        let asked = &container.image;
        let image = [&asked.user_specified_image, &asked.image]
            .into_iter()
            .find(|name| !name.is_empty());
        return Err(OciError::NoCommand {
            image: image.cloned().unwrap_or_default(),
        });
    }
    match line.iter().position(|argument| argument.contains('\0')) {
        Some(index) => Err(OciError::NulByte {
            field: format!("argument {index} of the command"),
        }),
        None => Ok(line),
    }
}

/// Refuses a process whose user or groups the pod's user namespace does not have.
pub(super) fn check_ids(user: &ResolvedUser, ids: Option<&IdMappings>) -> Result<(), OciError> {
    let Some(ids) = ids else { return Ok(()) };
    if ids.host_uid(user.uid).is_none() {
        return Err(OciError::UnmappedId {
            kind: "user",
            id: user.uid,
        });
    }
    let mut groups = [user.gid].into_iter().chain(user.additional_gids.clone());
    match groups.find(|&gid| ids.host_gid(gid).is_none()) {
        Some(id) => Err(OciError::UnmappedId { kind: "group", id }),
        None => Ok(()),
    }
}

/// The environment: defaults, then the image's, then the request's, then that of CDI devices, each replacing what has its name.
pub(super) fn environment(input: &ContainerInput<'_>) -> Result<Vec<String>, OciError> {
    let mut environment = Environment::default();
    environment.set("PATH", DEFAULT_PATH)?;
    if input.container.tty {
        environment.set("TERM", "xterm")?;
    }
    let pod = &input.pod.hostname;
    environment.set(
        "HOSTNAME",
        if pod.is_empty() {
            &input.host.hostname
        } else {
            pod
        },
    )?;
    for entry in &input.image.env {
        match entry.split_once('=') {
            Some((name, value)) => environment.set(name, value)?,
            // A name alone takes the variable away, as under docker.
            None => environment.unset(entry),
        }
    }
    for (name, value) in &input.container.envs {
        let value = str::from_utf8(value).map_err(|_| OciError::Environment {
            name: name.clone(),
            reason: "value is not UTF-8",
        })?;
        environment.set(name, value)?;
    }
    for entry in &input.injection.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        environment.set(name, value)?;
    }
    if !environment.has("HOME") {
        environment.set("HOME", input.user.home.as_deref().unwrap_or("/"))?;
    }
    Ok(environment
        .0
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

/// The working directory: the request's, else the image's, else the root.
pub(super) fn working_dir(
    container: &ContainerSpec,
    image: &ImageDefaults,
) -> Result<String, OciError> {
    if !container.working_dir.is_empty() {
        clean_container_path("working_dir", &container.working_dir)
    } else if !image.working_dir.is_empty() {
        clean_container_path("WORKDIR of the image", &image.working_dir)
    } else {
        Ok("/".to_owned())
    }
}

/// Variables in the order they first came.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) -> Result<(), OciError> {
        let refuse = |reason| {
            Err(OciError::Environment {
                name: name.to_owned(),
                reason,
            })
        };
        if name.is_empty() {
            return refuse("the name is empty");
        }
        if name.contains(['=', '\0']) {
            return refuse("the name has an equals sign or NUL");
        }
        if value.contains('\0') {
            return refuse("the value has a NUL byte");
        }
        // CVE-2022-4318: what reads HOME may write it to a file of lines.
        if name == "HOME" && value.contains(char::is_control) {
            return refuse("the value has a line break or another control character");
        }
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    fn unset(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
}
