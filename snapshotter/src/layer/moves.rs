//! Where the content of an archive's files is by now: an entry that is replaced by a later one is set
//! aside instead of deleted, and settling may move entries. Without this the archive could not be made
//! again (`assemble.rs`). Pure, with its form on disk.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::entry::LayerPath;

/// File of a snapshot directory with the moves; not there when nothing moved.
pub(crate) const MOVES: &str = "moves";
/// Directory of a snapshot directory with what was replaced, by number.
pub(crate) const ASIDE: &str = "aside";
/// Largest file of moves that is read, in bytes: hexadecimal, so twice the bytes a layer may have remembered,
/// with room for the notation.
pub(crate) const MOVES_MAX: u64 = 512 << 20;

/// Where something moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Another path of the layer.
    Files(LayerPath),
    /// Out of the layer, to this number below [`ASIDE`].
    Aside(u64),
}

/// One path of the layer moved with everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    /// It concerns files with content of a lower number than this, in the order of the archive.
    pub(crate) before: u64,
    pub(crate) from: LayerPath,
    pub(crate) to: Target,
}

/// The place of a file's content: below the files of the layer, or below a number set aside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Files(LayerPath),
    /// What was set aside is a file itself (the path is the root) or a directory with it.
    Aside(u64, LayerPath),
}

/// All moves of a layer in their order.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    moves: Vec<Move>,
    /// Positions in `moves`, by source, ascending.
    by_source: HashMap<LayerPath, Vec<usize>>,
}

impl Moves {
    pub(crate) fn new(moves: Vec<Move>) -> Self {
        let mut by_source: HashMap<LayerPath, Vec<usize>> = HashMap::new();
        for (position, made) in moves.iter().enumerate() {
            by_source
                .entry(made.from.clone())
                .or_default()
                .push(position);
        }
        Self { moves, by_source }
    }

    /// Finds the content of file number `number`, which the archive put at `path`. Each look-up costs the
    /// depth of the path, however many moves there are.
    pub(crate) fn place_of(&self, number: u64, path: &LayerPath) -> Place {
        let mut at = path.clone();
        let mut next = 0;
        while let Some(position) = self.first_from(next, number, &at) {
            let made = &self.moves[position];
            match &made.to {
                Target::Aside(aside) => {
                    let rest = at.rebased(&made.from, &LayerPath::default());
                    return Place::Aside(*aside, rest.unwrap_or_default());
                }
                Target::Files(to) => {
                    at = at.rebased(&made.from, to).unwrap_or_else(|| to.clone());
                }
            }
            next = position + 1;
        }
        Place::Files(at)
    }

    /// The first move at or after position `next` that took `path`, or a directory above it, away.
    fn first_from(&self, next: usize, number: u64, path: &LayerPath) -> Option<usize> {
        if self.moves.is_empty() {
            return None;
        }
        let mut above = path.clone();
        let mut first: Option<usize> = None;
        loop {
            if let Some(positions) = self.by_source.get(&above) {
                // Both conditions hold for an upper end of the list: moves are made in the archive's order.
                let start =
                    positions.partition_point(|&at| at < next || self.moves[at].before <= number);
                let found = positions.get(start).copied();
                first = match (first, found) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            if above.is_root() {
                return first;
            }
            above.pop();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    before: u64,
    /// Paths may be any bytes, so they are hexadecimal.
    from: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aside: Option<u64>,
}

/// Writes the moves as a JSON document.
pub(crate) fn to_json(moves: &[Move]) -> Vec<u8> {
    let lines: Vec<Line> = moves
        .iter()
        .map(|made| {
            let (to, aside) = match &made.to {
                Target::Files(path) => (Some(hex::encode(path.as_bytes())), None),
                Target::Aside(number) => (None, Some(*number)),
            };
            let from = hex::encode(made.from.as_bytes());
            Line {
                before: made.before,
                from,
                to,
                aside,
            }
        })
        .collect();
    serde_json::to_vec(&lines).expect("moves have only strings and numbers")
}

/// Reads the moves; the reason of a refusal is for the operator.
pub(crate) fn from_json(bytes: &[u8]) -> Result<Vec<Move>, String> {
    let lines: Vec<Line> =
        serde_json::from_slice(bytes).map_err(|error| format!("not a list of moves: {error}"))?;
    let path = |text: &str| {
        let bytes = hex::decode(text).map_err(|error| error.to_string())?;
        LayerPath::from_record(&bytes).ok_or_else(|| "not a path inside the layer".to_owned())
    };
    lines
        .into_iter()
        .map(|line| {
            let to = match (&line.to, line.aside) {
                (Some(to), None) => Target::Files(path(to)?),
                (None, Some(number)) => Target::Aside(number),
                _ => return Err("a move without one target".to_owned()),
            };
            Ok(Move {
                before: line.before,
                from: path(&line.from)?,
                to,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> LayerPath {
        LayerPath::from_record(text.as_bytes()).unwrap()
    }

    fn aside(before: u64, from: &str, number: u64) -> Move {
        Move {
            before,
            from: path(from),
            to: Target::Aside(number),
        }
    }

    #[test]
    fn each_content_is_found_where_its_own_moves_left_it() {
        let moves = Moves::new(vec![
            aside(1, "a/f", 0),
            aside(3, "a", 1),
            Move {
                before: u64::MAX,
                from: path("b"),
                to: Target::Files(path("usr/b")),
            },
            aside(u64::MAX, "usr/b/x", 2),
        ]);
        for (number, from, place) in [
            (0, "a/f", Place::Aside(0, LayerPath::default())),
            (1, "a/f", Place::Aside(1, path("f"))),
            (2, "a/deep/g", Place::Aside(1, path("deep/g"))),
            (3, "a", Place::Files(path("a"))),
            (3, "ab", Place::Files(path("ab"))),
            (4, "b/y", Place::Files(path("usr/b/y"))),
            (5, "b/x", Place::Aside(2, LayerPath::default())),
            (6, "usr/b/x", Place::Aside(2, LayerPath::default())),
        ] {
            assert_eq!(
                moves.place_of(number, &path(from)),
                place,
                "{number} {from}"
            );
        }
    }

    proptest! {
        #[test]
        fn moves_survive_the_round_trip(raw in proptest::collection::vec(
            (any::<u64>(), "[a-z\u{e9}]{1,9}(/[a-z]{1,3}){0,3}", proptest::option::of(any::<u64>())), 0..8)
        ) {
            let moves: Vec<Move> = raw.iter().map(|(before, from, number)| Move {
                before: *before,
                from: path(from),
                to: number.map_or_else(|| Target::Files(path("elsewhere")), Target::Aside),
            }).collect();
            prop_assert_eq!(from_json(&to_json(&moves)), Ok(moves));
        }
    }

    #[test]
    fn a_record_cannot_lead_out_of_the_layer() {
        let escape = hex::encode(b"../x");
        let text = format!(r#"[{{"before":1,"from":"{escape}","aside":0}}]"#);
        assert!(from_json(text.as_bytes()).is_err());
    }
}
