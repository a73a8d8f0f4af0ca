//! SELinux contexts as values: `user:role:type:level` (selinux(8)), and which ones a container's processes and
//! files have.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::failure::Failure;

/// Categories of a policy with levels: c0 to c1023.
const CATEGORIES: u32 = 1024;

/// How many pairs of categories there are, and so how many pods can be apart.
pub const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// Longest part of a context, in bytes.
const MAX_PART: usize = 255;

/// What a request asks for (CRI `SELinuxOption`); what is empty is as everywhere on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type of the processes.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level, with categories.
    pub level: String,
}

impl SelinuxOptions {
    /// The options of a request; none where no part is set.
    ///
    /// # Errors
    /// `InvalidArgument` naming the part: it has characters that no context has.
    pub fn checked(self) -> Result<Option<Self>, Failure> {
        for (part, value, others) in [
            ("user", &self.user, "_.-"),
            ("role", &self.role, "_.-"),
            ("type", &self.kind, "_.-"),
            ("level", &self.level, "_.-:,"),
        ] {
            let known = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
            if value.len() > MAX_PART || !value.chars().all(known) {
                let field = format!("linux.security_context.selinux_options.{part}");
                let why = format!("must be at most {MAX_PART} of A-Z a-z 0-9 {others}");
                return Err(Failure::invalid(&field, value, why));
            }
        }
        Ok((self != Self::default()).then_some(self))
    }
}

/// Whether containers have contexts on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selinux {
    /// The kernel has no SELinux, or no policy.
    #[default]
    Off,
    /// The policy knows no containers: nothing says what contexts they have.
    NoContexts,
    /// They have contexts made from these.
    On(Contexts),
}

impl Selinux {
    /// What a container's processes and files are labelled with; none where nothing is labelled.
    ///
    /// # Errors
    /// `FailedPrecondition`: options are given and cannot be honoured here.
    pub fn labels(
        &self,
        options: Option<&SelinuxOptions>,
        level: Option<&str>,
    ) -> Result<Option<Labels>, Failure> {
        let why = match (self, options) {
            (Self::On(contexts), options) => return Ok(Some(contexts.labels(options, level))),
            (Self::Off | Self::NoContexts, None) => return Ok(None),
            (Self::Off, Some(_)) => "SELinux is not on",
            (Self::NoContexts, Some(_)) => {
                "the SELinux policy of this node has no contexts for containers"
            }
        };
        let message = format!("linux.security_context.selinux_options: {why}");
        Err(Failure::precondition(message))
    }
}

/// What containers are labelled with by default, as the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    process: Context,
    file: Context,
}

impl Contexts {
    /// Reads the policy's file of container contexts: lines of `process = "CONTEXT"` and `file = "CONTEXT"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let of_key = |line: &str| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
            };
            Context::parse(&text.lines().find_map(of_key)?)
        };
        Some(Self {
            process: value("process")?,
            file: value("file")?,
        })
    }

    /// The level of the `number`th pair of categories, counted round from 0; none in a policy without levels.
    #[must_use]
    pub fn level(&self, number: u32) -> Option<String> {
        let number = number % PAIRS;
        let high = (1 + 8 * number).isqrt().div_ceil(2);
        let low = number - high * (high - 1) / 2;
        Some(format!("{}:c{low},c{high}", self.sensitivity()?))
    }

    /// The lowest sensitivity, without categories.
    fn sensitivity(&self) -> Option<&str> {
        self.process.level.as_deref()?.split(['-', ':']).next()
    }

    fn labels(&self, options: Option<&SelinuxOptions>, level: Option<&str>) -> Labels {
        let none = SelinuxOptions::default();
        let asked = options.unwrap_or(&none);
        let or = |asked: &str, default: &str| {
            let part = if asked.is_empty() { default } else { asked };
            part.to_owned()
        };
        let has_levels = self.process.level.is_some();
        let level = [asked.level.as_str(), level.unwrap_or_default()];
        let level = level.into_iter().find(|level| !level.is_empty());
        let level = level.or(self.process.level.as_deref());
        let level = level.filter(|_| has_levels).map(str::to_owned);
        let file = Context {
            user: or(&asked.user, &self.file.user),
            level: level.clone(),
            ..self.file.clone()
        };
        let shared = Context {
            level: self.sensitivity().map(str::to_owned),
            ..file.clone()
        };
        let process = Context {
            user: or(&asked.user, &self.process.user),
            role: or(&asked.role, &self.process.role),
            kind: or(&asked.kind, &self.process.kind),
            level,
        };
        Labels {
            process: process.to_string(),
            file: file.to_string(),
            shared: shared.to_string(),
        }
    }
}

/// What a container is labelled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Its processes.
    pub process: String,
    /// Its files, which containers of other levels cannot reach.
    pub file: String,
    /// Files that containers of every level may use.
    pub shared: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let context = Self {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next(),
        };
        let parts = [&context.user, &context.role, &context.kind];
        parts.iter().all(|part| !part.is_empty()).then_some(context)
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match &self.level {
            Some(level) => write!(f, ":{level}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::Class;

    const FILE: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        # content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\nsandbox_kvm_process=\"a:b:c:s0\"\n";

    fn options(change: impl FnOnce(&mut SelinuxOptions)) -> SelinuxOptions {
        let mut options = SelinuxOptions::default();
        change(&mut options);
        options
    }

    #[test]
    fn a_container_has_the_policys_contexts_and_its_pods_level() {
        let on = Selinux::On(Contexts::parse(FILE).unwrap());
        let labels = on.labels(None, Some("s0:c1,c2")).unwrap().unwrap();
        assert_eq!(labels.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(labels.file, "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(labels.shared, "system_u:object_r:container_file_t:s0");
    }

    #[test]
    fn options_go_before_defaults() {
        let on = Selinux::On(Contexts::parse(FILE).unwrap());
        let level = options(|o| o.level = "s0:c7,c8".into());
        let labels = on.labels(Some(&level), Some("s0:c1,c2")).unwrap().unwrap();
        assert_eq!(labels.process, "system_u:system_r:container_t:s0:c7,c8");
        assert_eq!(labels.file, "system_u:object_r:container_file_t:s0:c7,c8");
        let kind = options(|o| {
            (o.user, o.kind) = ("me_u".into(), "web_t".into());
        });
        let labels = on.labels(Some(&kind), Some("s0:c1,c2")).unwrap().unwrap();
        assert_eq!(labels.process, "me_u:system_r:web_t:s0:c1,c2");
        // The type of files is no option.
        assert_eq!(labels.file, "me_u:object_r:container_file_t:s0:c1,c2");
    }

    #[test]
    fn a_policy_without_levels_gives_none() {
        let text = "process = \"u:r:c_t\"\nfile = \"u:object_r:f_t\"\n";
        let contexts = Contexts::parse(text).unwrap();
        assert_eq!(contexts.level(3), None);
        let labels = Selinux::On(contexts).labels(None, Some("s0:c1,c2"));
        let labels = labels.unwrap().unwrap();
        assert_eq!(
            (&*labels.process, &*labels.shared),
            ("u:r:c_t", "u:object_r:f_t")
        );
    }

    #[test]
    fn every_pair_of_categories_has_a_number() {
        let contexts = Contexts::parse(FILE).unwrap();
        let level = |number| contexts.level(number).unwrap();
        assert_eq!(
            (level(0), level(1), level(2)),
            ("s0:c0,c1".into(), "s0:c0,c2".into(), "s0:c1,c2".into())
        );
        assert_eq!(level(PAIRS - 1), "s0:c1022,c1023");
        assert_eq!(level(PAIRS), level(0));
        let all: std::collections::BTreeSet<_> = (0..PAIRS).map(level).collect();
        assert_eq!(all.len(), PAIRS as usize);
    }

    #[test]
    fn options_without_selinux_are_refused_and_none_are_not() {
        let asked = options(|o| o.level = "s0:c1,c2".into());
        for off in [Selinux::Off, Selinux::NoContexts] {
            assert_eq!(off.labels(None, None).unwrap(), None);
            let refused = off.labels(Some(&asked), None).unwrap_err();
            assert_eq!(refused.class, Class::FailedPrecondition);
            assert!(refused.message.contains("selinux_options"), "{refused}");
        }
    }

    #[test]
    fn parts_that_no_context_has_are_refused_by_name() {
        assert_eq!(SelinuxOptions::default().checked().unwrap(), None);
        for (bad, part) in [
            (options(|o| o.user = "a:b".into()), "user"),
            (options(|o| o.kind = "t\n".into()), "type"),
            (options(|o| o.level = "s0,\"x".into()), "level"),
            (options(|o| o.role = "r".repeat(256)), "role"),
        ] {
            let refused = bad.checked().unwrap_err();
            assert_eq!(refused.class, Class::InvalidArgument);
            assert!(
                refused.message.contains(&format!("selinux_options.{part}")),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_file_without_contexts_is_none() {
        for text in [
            "",
            "process = \"a:b:c\"",
            "process = \"x\"\nfile = \"a:b:c\"",
            "file = \"::\"",
        ] {
            assert_eq!(Contexts::parse(text), None, "{text:?}");
        }
    }
}
