//! Reads the Prometheus text format as far as tests need it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// One sample: a name, its labels and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Parses an exposition.
///
/// # Errors
/// When a line is neither a comment nor a sample; the message names it.
pub fn parse(text: &str) -> Result<Vec<Sample>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| sample(line).with_context(|| format!("not a sample: {line:?}")))
        .collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        Some((name, rest)) => (name, labels(rest.strip_suffix('}')?)?),
    };
    let valid = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    (valid && !name.is_empty()).then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// `a="x",b="y"`; the values in tests hold no escapes.
fn labels(text: &str) -> Option<BTreeMap<String, String>> {
    text.split_terminator("\",")
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect()
}

/// The sum of the samples of `name` whose labels include `wanted`.
#[must_use]
pub fn sum(samples: &[Sample], name: &str, wanted: &[(&str, &str)]) -> f64 {
    samples
        .iter()
        .filter(|s| s.name == name)
        .filter(|s| {
            wanted
                .iter()
                .all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        })
        .map(|s| s.value)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_samples() {
        let text = "# HELP a b\na_total{method=\"Version\",code=\"OK\"} 3\nup 1\n";
        let samples = parse(text).unwrap();
        assert!((sum(&samples, "a_total", &[("code", "OK")]) - 3.0).abs() < 1e-9);
        assert_eq!(samples[1].name, "up");
        assert!(parse("what is this").is_err());
    }
}
