//! What a question asks for besides its words, and what a memory shows besides its own: who
//! said it, when, whether it asks and whether it answers.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::fusion::Signals;
use super::rows::{NONE, Rows};

/// The memory has a vector.
pub const HAS_VECTOR: u32 = 1;
/// Its text ends with a question.
const ASKS: u32 = 2;
/// Its text has a question somewhere.
const HAS_QUESTION: u32 = 4;
/// Its text says when.
const SAYS_WHEN: u32 = 8;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// Words that say when something was or will be.
static TIMES: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    let near =
        ["yesterday", "today", "tomorrow", "tonight", "last", "next", "ago", "recently", "soon", "since"];
    let spans = ["week", "weeks", "weekend", "month", "months", "year", "years"];
    let days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    near.into_iter().chain(spans).chain(days).chain(MONTHS).collect()
});

/// What a text shows, as bits.
pub(super) fn traits_of(text: &str, has_vector: bool) -> u32 {
    let says_when = tokens(text).any(|word| {
        let word = word.to_lowercase();
        TIMES.contains(word.as_str()) || year_of(&word).is_some()
    });
    let bit = |is_so: bool, bit: u32| if is_so { bit } else { 0 };
    bit(has_vector, HAS_VECTOR)
        | bit(text.trim_end().ends_with('?'), ASKS)
        | bit(text.contains('?'), HAS_QUESTION)
        | bit(says_when, SAYS_WHEN)
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// A year from 1900 to 2099.
fn year_of(word: &str) -> Option<u32> {
    let year = if word.len() == 4 { word.parse().ok() } else { None };
    year.filter(|year| (1900..2100).contains(year))
}

/// A day of a month: "7", "7th".
fn day_of(word: &str) -> Option<u32> {
    let digits = word.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let is_plain = matches!(&word[digits.len()..], "" | "st" | "nd" | "rd" | "th");
    digits.parse().ok().filter(|day| is_plain && (1..=31).contains(day))
}

/// What a memory shows besides its words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Who said it, by the number that the question's authors have.
    pub(super) author: u32,
    /// From when it is true, in milliseconds since 1970.
    pub(super) valid_from: i64,
    /// As of [`traits_of`].
    pub(super) traits: u32,
    /// Those of the memory before it in its session; 0 where there is none.
    pub(super) traits_before: u32,
}

/// What a question asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Clues {
    /// The author that it names, if it names one alone.
    author: Option<u32>,
    /// Years, months and days, as bits from 1900, 1 and 1 on.
    years: Vec<u32>,
    months: u32,
    days: u32,
    /// Whether it asks when.
    when: bool,
}

impl Clues {
    /// Those of a question to memories of these authors.
    pub(super) fn of(question: &str, authors: &[(u32, &str)]) -> Self {
        let words: Vec<String> = tokens(question).map(str::to_lowercase).collect();
        let mut named = authors.iter().filter(|(_, name)| names(&words, name));
        let author = named.next().map(|(author, _)| *author).filter(|_| named.next().is_none());
        let mut clues = Self { author, when: asks_when(&words), ..Self::default() };
        for (word, lower) in tokens(question).zip(&words) {
            let month = MONTHS.iter().position(|month| month == lower);
            // "may" is a month with a capital only.
            if let Some(month) = month.filter(|_| lower != "may" || word.starts_with('M')) {
                clues.months |= 1 << month;
            }
            clues.years.extend(year_of(lower).filter(|year| *year >= 2000));
        }
        if clues.months != 0 {
            clues.days = words.iter().filter_map(|word| day_of(word)).fold(0, |days, day| days | 1 << day);
        }
        clues
    }

    /// What a row has of it.
    pub(super) fn of_row(&self, rows: &Rows, row: u32) -> Signals {
        let here = rows.row(row);
        let previous = rows.turn(row).previous;
        let before = rows.get(previous).filter(|_| previous != NONE);
        self.of_shown(&Shown {
            author: here.author,
            valid_from: here.valid_from,
            traits: here.traits,
            traits_before: before.map_or(0, |before| before.traits),
        })
    }

    /// What a memory that shows this has of it.
    pub(super) fn of_shown(&self, shown: &Shown) -> Signals {
        let share = |is_so: bool| if is_so { 1.0 } else { 0.0 };
        Signals {
            author: share(self.author.is_some_and(|author| author == shown.author)),
            date: self.date_share(shown.valid_from),
            asks: share(shown.traits & ASKS != 0),
            answers: share(shown.traits_before & HAS_QUESTION != 0),
            when: share(self.when && shown.traits & SAYS_WHEN != 0),
            ..Signals::default()
        }
    }

    /// Which share of the month, year and day that are asked for is that of a time.
    fn date_share(&self, valid_from: i64) -> f32 {
        let (year, month, day) = date_of(valid_from);
        let parts = [
            (self.months != 0).then_some(self.months & 1 << (month - 1) != 0),
            (!self.years.is_empty()).then(|| self.years.iter().any(|asked| i64::from(*asked) == year)),
            (self.days != 0).then_some(self.days & 1 << day != 0),
        ];
        let asked = parts.iter().flatten().count();
        let right = parts.iter().flatten().filter(|is_right| **is_right).count();
        if asked == 0 { 0.0 } else { right as f32 / asked as f32 }
    }
}

/// Whether all of a name's words are in the question, one after the other.
fn names(words: &[String], name: &str) -> bool {
    let name: Vec<String> = tokens(name).map(str::to_lowercase).collect();
    !name.is_empty() && words.windows(name.len()).any(|some| some == name)
}

fn asks_when(words: &[String]) -> bool {
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    match (word(0), word(1)) {
        ("when", _) | ("how", "long") | ("in", "what" | "which") => true,
        ("what" | "which", next) => matches!(next, "date" | "day" | "month" | "year" | "time"),
        _ => false,
    }
}

/// Year, month and day of a time in milliseconds since 1970, in UTC: Howard Hinnant's
/// `civil_from_days`, with years that start in March.
fn date_of(ms: i64) -> (i64, u32, u32) {
    let days = ms.div_euclid(86_400_000) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (days, date) in
            [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (-1, (1969, 12, 31)), (19_844, (2024, 5, 1))]
        {
            assert_eq!(date_of(days * 86_400_000 + 5), date);
        }
        for extreme in [i64::MIN, i64::MAX] {
            date_of(extreme);
        }
    }

    #[test]
    fn what_a_question_asks_for() {
        let authors = [(0, "Ana Lima"), (1, "Bob")];
        let clues = |question: &str| Clues::of(question, &authors);
        assert_eq!(clues("Where did bob's cat go?").author, Some(1));
        assert_eq!(clues("What did Ana Lima say?").author, Some(0));
        assert_eq!((clues("Ana?").author, clues("Ana Lima and Bob?").author), (None, None));
        let dated = clues("What did we do on May 7th, 2023?");
        assert_eq!((dated.months, dated.days, dated.years), (1 << 4, 1 << 7, vec![2023]));
        assert_eq!(clues("May I take 7?").days, 1 << 7);
        assert_eq!((clues("what may I take 7 of").months, clues("what may I take 7 of").days), (0, 0));
        for question in ["When?", "How long is it", "Which year was it", "In what month"] {
            assert!(clues(question).when, "{question}");
        }
        assert!(!clues("What is it, and when").when);
    }

    #[test]
    fn what_a_text_shows() {
        assert_eq!(traits_of("We met last week. ", true), HAS_VECTOR | SAYS_WHEN);
        assert_eq!(traits_of("Really? In 1999", false), HAS_QUESTION | SAYS_WHEN);
        assert_eq!(traits_of("Is it? ", false), HAS_QUESTION | ASKS);
        assert_eq!(traits_of("", false), 0);
    }
}
