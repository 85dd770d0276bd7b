//! A text as the words that it is found by: lower case, no stop words, stems.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use rust_stemmers::{Algorithm, Stemmer};

/// A longer run of letters is not a word that anybody asks for.
const WORD_BYTES_MAX: usize = 64;

/// Words that are in every other text, without their apostrophes, as [`words`] sees them.
static STOP_WORDS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    // What contractions leave, and modals that the list lacks.
    let more = ["im", "ive", "id", "lets", "theyre", "theyve", "weve", "would", "could", "also", "us"];
    let listed = stop_words::lookup("en").unwrap_or_default();
    listed.iter().chain(&more).map(|word| word.replace('\'', "")).collect()
});

/// Finds the words of texts.
pub(super) struct Words {
    stemmer: Stemmer,
}

impl Default for Words {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }
}

impl Words {
    /// The stems of a text's words, and how often each occurs.
    pub(super) fn count(&self, text: &str) -> HashMap<String, u32> {
        let mut counts = HashMap::new();
        self.each(text, |stem| *counts.entry(stem.to_owned()).or_insert(0) += 1);
        counts
    }

    /// The words to look for. Authors' names are clues, not words, unless there are no others.
    pub(super) fn asked(&self, text: &str, authors: &[(u32, &str)]) -> HashMap<String, u32> {
        let all = self.count(text);
        let names: HashSet<String> =
            authors.iter().flat_map(|(_, name)| self.count(name).into_keys()).collect();
        let others: HashMap<String, u32> = all
            .iter()
            .filter(|(word, _)| !names.contains(*word))
            .map(|(word, count)| (word.clone(), *count))
            .collect();
        if others.is_empty() { all } else { others }
    }

    fn each(&self, text: &str, mut visit: impl FnMut(&str)) {
        let mut word = String::new();
        // One character more ends the last word.
        for character in text.chars().chain(" ".chars()) {
            if is_word_by_itself(character) {
                self.finish(&mut word, &mut visit);
                word.push(character);
                self.finish(&mut word, &mut visit);
            } else if character.is_alphanumeric() {
                word.extend(character.to_lowercase());
            } else if !matches!(character, '\'' | '\u{2019}') {
                self.finish(&mut word, &mut visit);
            }
        }
    }

    fn finish(&self, word: &mut String, visit: &mut impl FnMut(&str)) {
        if !word.is_empty() && word.len() <= WORD_BYTES_MAX && !STOP_WORDS.contains(word.as_str()) {
            visit(&self.stemmer.stem(word));
        }
        word.clear();
    }
}

/// Scripts that put no spaces between words: each character counts as one.
const fn is_word_by_itself(character: char) -> bool {
    matches!(character, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words: Vec<_> = Words::default().count(text).into_keys().collect();
        words.sort();
        words
    }

    #[test]
    fn forms_of_a_word_are_one() {
        assert_eq!(words("Databases"), words("a database"));
        assert_eq!(Words::default().count("run, running & RUNS")["run"], 3);
    }

    #[test]
    fn stop_words_and_apostrophes() {
        assert!(words("We don't, and you\u{2019}re who could be").is_empty());
        assert_eq!(words("Ana's cat"), ["ana", "cat"]);
    }

    #[test]
    fn other_scripts() {
        assert_eq!(words("naïve Größe"), ["größe", "naïv"]);
        assert_eq!(words("東京"), ["京", "東"]);
        assert!(words(&"x".repeat(65)).is_empty());
    }
}
