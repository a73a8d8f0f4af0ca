//! Ids of containers.

use super::StateError;

/// A container id that is safe as a file name: 1 to 1024 of `A-Z a-z 0-9 _ + . -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`StateError::InvalidId`].
    pub fn parse(id: &str) -> Result<ContainerId, StateError> {
        let invalid = |reason| {
            Err(StateError::InvalidId {
                id: id.to_owned(),
                reason,
            })
        };
        if id.is_empty() {
            return invalid("it is empty");
        }
        // File names end at 255 bytes; runc allows ids of 1024 that then fail in mkdir.
        if id.len() > 1024 {
            return invalid("it is longer than 1024 bytes");
        }
        if !id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(&b))
        {
            return invalid("it may contain letters, digits and _ + . - only");
        }
        if id == "." || id == ".." || id == crate::seccomp::cache::DIRECTORY {
            return invalid("it is a reserved name");
        }
        Ok(ContainerId(id.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_and_nothing_else() {
        for good in ["a", "A-b_c.d+9", ".hidden", "...", &"x".repeat(1024)] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a b",
            "a\n",
            "a\0",
            "ä",
            ".seccomp-cache",
            &"x".repeat(1025),
        ] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
