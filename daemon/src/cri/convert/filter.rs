//! Filters of list calls: every given condition must hold.

use std::collections::{BTreeMap, HashMap};

/// Whether an id begins with the wanted one; empty wants all (crictl sends truncated ids).
#[must_use]
pub fn id_matches(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

/// Whether all wanted labels are there with the wanted values.
#[must_use]
pub fn labels_match(wanted: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_for_equality_and_all_must_match() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let wanted = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect::<HashMap<_, _>>()
        };
        assert!(labels_match(&wanted(&[]), &labels));
        assert!(labels_match(&wanted(&[("a", "1")]), &labels));
        assert!(!labels_match(&wanted(&[("a", "2")]), &labels));
        assert!(!labels_match(&wanted(&[("a", "1"), ("b", "1")]), &labels));
    }
}
