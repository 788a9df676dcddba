//! What smaps calls the bits of a mapping's `vm_flags`, learnt from smaps itself: no bit is assumed to mean anything.
//!
//! Bits move between kernels and depend on their configuration. But in each, VmFlags is a function of the word: the
//! names of its bits from the lowest to the highest, with nothing for some (show_smap_vma_flags() of
//! fs/proc/task_mmu.c). So a mapping whose word and names are both known teaches the names of all its bits. A word
//! with a bit that nothing has taught yet has no names here, and neither has any word once two lessons disagree:
//! then smaps is read.

use super::vma::Raw;
use std::collections::BTreeMap;

/// What is known of the 64 bits.
#[derive(Debug, Clone)]
pub struct Names {
    bits: [Bit; 64],
    /// The protection key that silent bits stand for.
    keys: BTreeMap<u64, u32>,
    /// Lessons did not agree: the words are not what they are taken for.
    contradicted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bit {
    Unknown,
    /// Shows nothing among the names: protection keys have a line of their own.
    Silent,
    Named(String),
}

/// A mapping as the kernel has it: its bounds and its `vm_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub start: u64,
    pub end: u64,
    pub flags: u64,
}

impl Default for Names {
    fn default() -> Self {
        Self { bits: [const { Bit::Unknown }; 64], keys: BTreeMap::new(), contradicted: false }
    }
}

impl Names {
    /// Takes in that the bits of `word` show as `names`.
    pub fn learn(&mut self, word: u64, names: &[String]) {
        let set: Vec<usize> = (0..64).filter(|bit| word >> bit & 1 != 0).collect();
        let known: Vec<&String> = set.iter().filter_map(|&bit| self.bits[bit].name()).collect();
        let lesson: Vec<(usize, Bit)> = if set.len() == names.len() {
            set.into_iter().zip(names.iter().cloned().map(Bit::Named)).collect()
        } else if known.iter().copied().eq(names) {
            // Those that are left show nothing.
            set.into_iter().filter(|&bit| self.bits[bit] == Bit::Unknown).map(|b| (b, Bit::Silent)).collect()
        } else {
            // Which of the bits are silent cannot be told; a word that is known throughout must show what it should.
            self.contradicted |= set.iter().all(|&bit| self.bits[bit] != Bit::Unknown);
            return;
        };
        for (bit, taught) in lesson {
            self.contradicted |= self.bits[bit] != Bit::Unknown && self.bits[bit] != taught;
            self.bits[bit] = taught;
        }
    }

    /// The names of the bits of `word`, as smaps would show them.
    pub fn of(&self, word: u64) -> Option<Vec<String>> {
        if self.contradicted {
            return None;
        }
        let set = (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| &self.bits[bit]);
        let known: Option<Vec<&Bit>> = set.map(|bit| (*bit != Bit::Unknown).then_some(bit)).collect();
        Some(known?.into_iter().filter_map(Bit::name).cloned().collect())
    }

    /// Those bits of `word` that show nothing here.
    fn silent(&self, word: u64) -> u64 {
        (0..64).filter(|&bit| self.bits[bit] == Bit::Silent).fold(0, |silent, bit| silent | word & 1 << bit)
    }

    /// The protection key that smaps would show for `word`.
    fn key_of(&self, word: u64) -> Option<u32> {
        match self.silent(word) {
            0 => Some(0),
            silent => self.keys.get(&silent).copied(),
        }
    }

    /// Takes in that smaps shows `key` for `word`, the bits of which are all known.
    fn learn_key(&mut self, word: u64, key: u32) {
        let silent = self.silent(word);
        let taught = *self.keys.entry(silent).or_insert(key);
        self.contradicted |= taught != key || (silent == 0 && key != 0);
    }

    /// Gives each of `raws`, which come from maps, the flags that smaps would show. `None` when one of them has no
    /// word, a word has no names or not only names, or the two say different things of it.
    pub fn give(&self, raws: Vec<Raw>, words: &[Word]) -> Option<Vec<Raw>> {
        if raws.len() != words.len() {
            return None;
        }
        let give = |(mut raw, word): (Raw, &Word)| {
            raw.flags = self.of(word.flags)?;
            raw.key = self.key_of(word.flags)?;
            let has = |flag: &str| raw.flags.iter().any(|f| f == flag);
            let permissions = [(b'r', "rd"), (b'w', "wr"), (b'x', "ex"), (b's', "ms")];
            let agree = permissions
                .iter()
                .zip(raw.permissions)
                .all(|((letter, flag), p)| (p == *letter) == has(flag));
            (agree && (raw.start, raw.end) == (word.start, word.end)).then_some(raw)
        };
        raws.into_iter().zip(words).map(give).collect()
    }

    /// Learns from mappings that smaps has shown and that have not changed between it and `words`, which ascend.
    pub fn learn_from(&mut self, raws: &[Raw], words: &[Word]) {
        for raw in raws {
            let at = words.binary_search_by_key(&raw.start, |word| word.start);
            if let Some(word) = at.ok().map(|at| words[at]).filter(|word| word.end == raw.end) {
                self.learn(word.flags, &raw.flags);
                if self.of(word.flags).is_some() {
                    self.learn_key(word.flags, raw.key);
                }
            }
        }
    }
}

/// Names for another process of the same kernel: bit by bit, what is not known as nothing, and silent bits as this.
const TOLD_SILENT: &str = "-";

impl Names {
    /// For another process, which learns the keys of silent bits as it meets them.
    pub fn told(&self) -> Vec<String> {
        let told = |bit: &Bit| match bit {
            Bit::Unknown => String::new(),
            Bit::Silent => TOLD_SILENT.to_owned(),
            Bit::Named(name) => name.clone(),
        };
        if self.contradicted { Vec::new() } else { self.bits.iter().map(told).collect() }
    }

    /// What [`Self::told`] has told; `None` of anything else.
    pub fn of_told(told: &[String]) -> Option<Self> {
        let mut names = Self { contradicted: told.is_empty(), ..Self::default() };
        if !told.is_empty() && told.len() != names.bits.len() {
            return None;
        }
        for (bit, name) in names.bits.iter_mut().zip(told) {
            *bit = match name.as_str() {
                "" => Bit::Unknown,
                TOLD_SILENT => Bit::Silent,
                name => Bit::Named(name.to_owned()),
            };
        }
        Some(names)
    }
}

impl Bit {
    fn name(&self) -> Option<&String> {
        if let Self::Named(name) = self { Some(name) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_bit_that_nothing_has_taught_has_no_name() {
        let mut known = Names::default();
        known.learn(0b0111, &names("rd wr mr"));
        assert_eq!(known.of(0b0101), Some(names("rd mr")));
        assert_eq!(known.of(0b1101), None);
    }

    #[test]
    fn a_bit_that_shows_nothing_is_found_when_all_others_are_known() {
        let mut known = Names::default();
        known.learn(0b1011, &names("rd wr"));
        assert_eq!(known.of(0b0011), None, "which of the three is silent?");
        known.learn(0b0011, &names("rd wr"));
        known.learn(0b1011, &names("rd wr"));
        assert_eq!(known.of(0b1001), Some(names("rd")));
    }

    #[test]
    fn what_was_learnt_is_told_to_others() {
        let mut known = Names::default();
        known.learn(0b0011, &names("rd wr"));
        known.learn(0b1011, &names("rd wr"));
        let told = Names::of_told(&known.told()).unwrap();
        assert_eq!(told.bits, known.bits);
        assert!(Names::of_told(&known.told()[1..]).is_none());
        known.learn(0b0011, &names("wr rd"));
        assert_eq!(Names::of_told(&known.told()).unwrap().of(0b11), None, "lessons that disagree");
    }

    #[test]
    fn bits_that_show_nothing_teach_protection_keys() {
        let shown = |key: u32| {
            let text = format!("1000-2000 rw-p 00000000 00:00 0\nProtectionKey: {key}\nVmFlags: rd wr\n");
            super::super::vma::parse(&text).unwrap()
        };
        let raws = || super::super::vma::parse("1000-2000 rw-p 00000000 00:00 0\n").unwrap();
        let word = |flags| [Word { start: 0x1000, end: 0x2000, flags }];
        let key = |known: &Names, flags| known.give(raws(), &word(flags)).map(|given| given[0].key);
        let mut known = Names::default();
        known.learn_from(&shown(0), &word(0b0011));
        assert_eq!(key(&known, 0b0011), Some(0));
        known.learn_from(&shown(2), &word(0b1011));
        assert_eq!(key(&known, 0b1011), Some(2));
        known.learn(0b10011, &names("rd wr"));
        assert_eq!(key(&known, 0b10011), None, "no key of that bit is known");
        known.learn_from(&shown(3), &word(0b11011));
        assert_eq!((key(&known, 0b11011), key(&known, 0b1011)), (Some(3), Some(2)));
        known.learn_from(&shown(1), &word(0b1011));
        assert_eq!(key(&known, 0b0011), None, "lessons disagree");
    }

    #[test]
    fn lessons_that_disagree_end_it() {
        let taught: [&[(u64, &str)]; 3] = [
            &[(0b11, "rd wr"), (0b10, "ex")],
            &[(0b11, "rd wr"), (0b11, "rd")],
            &[(0b11, "rd wr"), (0b11, "wr rd")],
        ];
        for lessons in taught {
            let mut known = Names::default();
            lessons.iter().for_each(|(word, text)| known.learn(*word, &names(text)));
            assert_eq!(known.of(0b11), None, "{lessons:?}");
        }
    }

    #[test]
    fn maps_and_words_must_be_of_the_same_mappings() {
        let mut known = Names::default();
        known.learn(0b1011, &names("rd wr ms"));
        let raws = || super::super::vma::parse("1000-2000 rw-p 00000000 00:00 0\n").unwrap();
        let word = Word { start: 0x1000, end: 0x2000, flags: 0b0011 };
        assert_eq!(known.give(raws(), &[word]).unwrap()[0].flags, names("rd wr"));
        for wrong in
            [Word { end: 0x3000, ..word }, Word { flags: 0b0001, ..word }, Word { flags: 0b1011, ..word }]
        {
            assert!(known.give(raws(), &[wrong]).is_none(), "{wrong:?}");
        }
        assert!(known.give(raws(), &[]).is_none() && known.give(Vec::new(), &[word]).is_none());
    }

    proptest! {
        /// Whatever a kernel calls its bits, and in whatever order its mappings are seen: no word gets other names
        /// than that kernel's.
        #[test]
        fn never_other_names_than_the_kernels(
            table in proptest::collection::vec(proptest::option::weighted(0.9, "[a-z]{2}|\\?\\?"), 64),
            // Words of a few bits, as mappings have them.
            taught in proptest::collection::vec(proptest::collection::vec(0..64u32, 1..6), 0..60),
            asked in proptest::collection::vec(0..64u32, 0..3),
        ) {
            let word = |bits: &Vec<u32>| bits.iter().fold(0u64, |word, bit| word | 1 << bit);
            let shows = |word: u64| -> Vec<String> {
                (0..64).filter(|bit| word >> bit & 1 != 0).filter_map(|bit| table[bit].clone()).collect()
            };
            let mut known = Names::default();
            for word in taught.iter().map(word) {
                known.learn(word, &shows(word));
            }
            prop_assert!(!known.contradicted);
            if let Some(names) = known.of(word(&asked)) {
                prop_assert_eq!(names, shows(word(&asked)));
            }
        }
    }
}
