//! Limits: which memories are too old, too many or too large to stay.

use super::rows::Rows;
use super::scope::Scope;
use super::user::User;
use crate::error::{Error, Result};

/// What a scope may hold at most. The oldest go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Milliseconds since a memory was recorded.
    pub age_ms_max: Option<u64>,
    /// Memories, past versions included.
    pub count_max: Option<u64>,
    /// Bytes of their records.
    pub bytes_max: Option<u64>,
}

impl Retention {
    /// For each row, whether it goes.
    fn gone(&self, rows: &Rows, covered: &[bool], now: i64) -> Vec<bool> {
        let oldest = now.saturating_sub_unsigned(self.age_ms_max.unwrap_or(u64::MAX));
        let mut gone = vec![false; rows.len()];
        let (mut count, mut bytes) = (0, 0);
        for (index, row) in rows.all().iter().enumerate().rev() {
            if !covered[row.leaf as usize] {
                continue;
            }
            count += 1;
            bytes += u64::from(row.place.bytes);
            gone[index] |= self.count_max.is_some_and(|most| count > most)
                || self.bytes_max.is_some_and(|most| bytes > most)
                || (self.age_ms_max.is_some() && row.recorded < oldest);
            // What it took the place of must not become true again.
            if gone[index]
                && let Some(older) = rows.find(row.supersedes)
            {
                gone[older as usize] = true;
            }
        }
        gone
    }
}

impl User {
    /// Erases what is beyond the limits; how many records went.
    ///
    /// # Errors
    /// `Invalid` without a limit; `Io`.
    pub(super) fn retain(&mut self, scope: &Scope, retention: &Retention, now: i64) -> Result<u64> {
        if *retention == Retention::default() {
            return Err(Error::Invalid("a limit of age, count or bytes is needed".into()));
        }
        let covered = self.rows.covered(scope.names());
        let gone = retention.gone(&self.rows, &covered, now);
        self.erase(&gone)
    }
}
