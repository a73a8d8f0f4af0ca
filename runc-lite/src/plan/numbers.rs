//! Sets of CPUs and of memory nodes.

/// A set of CPU or memory node numbers as the bit mask that system calls take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberSet {
    words: Vec<u64>,
}

impl NumberSet {
    /// One more than the highest number: what kernels are built for at most (CONFIG_NR_CPUS 8192,
    /// CONFIG_NODES_SHIFT 10).
    pub const LIMIT: u32 = 8192;

    /// Reads a list such as `0-3,7`, the "List format" of cpuset(7).
    ///
    /// # Errors
    /// The part that is no number or range, and what is wrong with it.
    pub fn parse(text: &str) -> Result<NumberSet, (String, &'static str)> {
        let mut set = NumberSet::default();
        for part in text.split(',').map(str::trim) {
            let wrong = |reason| (part.to_owned(), reason);
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                if !plain {
                    return Err(wrong("is not a number or a range of numbers"));
                }
                text.parse::<u32>()
                    .ok()
                    .filter(|number| *number < NumberSet::LIMIT)
                    .ok_or_else(|| wrong("is above 8191"))
            };
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(wrong("is a range that ends before it begins"));
            }
            (first..=last).for_each(|number| set.insert(number));
        }
        Ok(set)
    }

    fn insert(&mut self, number: u32) {
        let word = (number / 64) as usize;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (number % 64);
    }

    /// Every number below [`NumberSet::LIMIT`].
    #[must_use]
    pub fn all() -> NumberSet {
        NumberSet {
            words: vec![u64::MAX; (NumberSet::LIMIT / 64) as usize],
        }
    }

    /// How many numbers it has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The mask, lowest numbers first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}
