//! Lists and maps of hostile JSON: what exceeds the bound is counted and not kept, so that a small document
//! cannot become a large one in memory, and the one who reads it can name the field.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most entries of a list or map of an image document. Images have a few dozen.
pub(super) const MAX_ENTRIES: usize = 4096;

/// The first `MAX` elements of a list.
#[derive(Debug)]
pub(super) struct List<T, const MAX: usize = MAX_ENTRIES> {
    pub(super) kept: Vec<T>,
    /// How many there were.
    pub(super) count: usize,
}

/// The first [`MAX_ENTRIES`] entries of a map with texts for keys.
#[derive(Debug)]
pub(super) struct Map<T> {
    pub(super) kept: BTreeMap<String, T>,
    /// How many there were, repeated keys among them.
    pub(super) count: usize,
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self {
            kept: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Self::Value, A::Error> {
                let mut list = List::default();
                while list.count < MAX
                    && let Some(element) = input.next_element()?
                {
                    list.kept.push(element);
                    list.count += 1;
                }
                while input.next_element::<IgnoredAny>()?.is_some() {
                    list.count += 1;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Map<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Map<T>, A::Error> {
                let mut map = Map::default();
                while map.count < MAX_ENTRIES
                    && let Some((key, value)) = input.next_entry()?
                {
                    map.kept.insert(key, value);
                    map.count += 1;
                }
                while input.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    map.count += 1;
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_bound_is_counted_and_not_kept() {
        let text = format!("[{}]", vec!["\"a\""; MAX_ENTRIES + 10].join(","));
        let list: List<String> = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (list.kept.len(), list.count),
            (MAX_ENTRIES, MAX_ENTRIES + 10)
        );
        let entries: Vec<String> = (0..MAX_ENTRIES + 3).map(|n| format!("\"{n}\":1")).collect();
        let map: Map<u8> = serde_json::from_str(&format!("{{{}}}", entries.join(","))).unwrap();
        assert_eq!((map.kept.len(), map.count), (MAX_ENTRIES, MAX_ENTRIES + 3));
    }

    #[test]
    fn what_has_another_type_is_an_error() {
        assert!(serde_json::from_str::<List<String>>("[1]").is_err());
        assert!(serde_json::from_str::<Map<String>>("[]").is_err());
        assert!(serde_json::from_str::<Map<String>>(r#"{"a":1}"#).is_err());
    }
}
