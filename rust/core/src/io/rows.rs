//! Reading ahead in a file of rows that somebody else has mapped: which rows come next is known
//! before they are needed, and a fault that finds its page costs a thousandth of one that waits.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ALIGN, platform};
use crate::{Error, Result};

/// More ranges than this are asked for on a thread of their own: one request takes microseconds.
const INLINE_RANGES_MAX: usize = 64;

/// A file of rows of one width, all of it or a part.
pub struct RowFile {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    row_bytes: u64,
    num_rows: u64,
}

impl RowFile {
    /// Opens a file for reading ahead; how many rows it has follows from its length.
    ///
    /// # Errors
    /// What the file system says; a length that is no multiple of `row_bytes`.
    pub fn open(path: &Path, row_bytes: u64) -> Result<Self> {
        let io = |source| Error::Io { action: "open", path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        if row_bytes == 0 || !len.is_multiple_of(row_bytes) {
            let what = format!("{}: {len} bytes are no whole rows of {row_bytes} bytes", path.display());
            return Err(Error::Invalid(what));
        }
        Ok(Self::over(file, path, 0, row_bytes, len / row_bytes))
    }

    /// Opens the `num_rows` rows that begin `offset` bytes into a file of more than them.
    ///
    /// # Errors
    /// What the file system says; rows that the file ends before.
    pub fn open_part(path: &Path, row_bytes: u64, offset: u64, num_rows: u64) -> Result<Self> {
        let io = |source| Error::Io { action: "open", path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let end = num_rows.checked_mul(row_bytes).and_then(|bytes| bytes.checked_add(offset));
        if row_bytes == 0 || end.is_none_or(|end| end > len) {
            let what = format!(
                "{}: {num_rows} rows of {row_bytes} bytes from {offset} on do not fit {len} bytes",
                path.display()
            );
            return Err(Error::Invalid(what));
        }
        Ok(Self::over(file, path, offset, row_bytes, num_rows))
    }

    fn over(file: File, path: &Path, offset: u64, row_bytes: u64, num_rows: u64) -> Self {
        platform::advise_random(&file);
        Self { file: Arc::new(file), path: path.to_path_buf(), offset, row_bytes, num_rows }
    }

    /// Rows in the file.
    pub fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// Asks the system to read these rows, in any order and as often as they come, and does not
    /// wait for it. Best effort: where the system cannot, nothing happens. The number of ranges
    /// that were asked for.
    ///
    /// # Errors
    /// A row that the file does not have.
    pub fn prefetch(&self, rows: impl IntoIterator<Item = i64>) -> Result<usize> {
        let ranges = self.ranges(rows)?;
        let count = ranges.len();
        if count <= INLINE_RANGES_MAX {
            ask(&self.file, &ranges);
        } else {
            let file = Arc::clone(&self.file);
            let spawned =
                std::thread::Builder::new().name("strata-rows".to_owned()).spawn(move || ask(&file, &ranges));
            // Without a thread to spare the rows are read when they are looked up.
            drop(spawned);
        }
        Ok(count)
    }

    /// The blocks of these rows as (offset, length), ascending, neighbours in one.
    fn ranges(&self, rows: impl IntoIterator<Item = i64>) -> Result<Vec<(u64, u64)>> {
        const BLOCK: u64 = ALIGN as u64;
        let mut blocks = Vec::new();
        for row in rows {
            let inside = u64::try_from(row).ok().filter(|row| *row < self.num_rows);
            let Some(row) = inside else {
                let what = format!("row {row} of {}, which has {} rows", self.path.display(), self.num_rows);
                return Err(Error::Invalid(what));
            };
            let first = self.offset + row * self.row_bytes;
            let end = first + self.row_bytes;
            blocks.extend(first / BLOCK..end.div_ceil(BLOCK));
        }
        blocks.sort_unstable();
        blocks.dedup();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for block in blocks {
            match ranges.last_mut() {
                Some((offset, len)) if *offset + *len == block * BLOCK => *len += BLOCK,
                _ => ranges.push((block * BLOCK, BLOCK)),
            }
        }
        Ok(ranges)
    }
}

fn ask(file: &File, ranges: &[(u64, u64)]) {
    for &(offset, len) in ranges {
        platform::will_need(file, offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(bytes: usize, row_bytes: u64) -> (tempfile::TempDir, Result<RowFile>) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("table");
        std::fs::write(&path, vec![0; bytes]).expect("a file");
        let file = RowFile::open(&path, row_bytes);
        (place, file)
    }

    #[test]
    fn asks_for_each_block_once_and_for_neighbours_together() {
        let (_place, file) = rows_of(6 * 4096, 1024);
        let file = file.expect("whole rows");
        assert_eq!(file.num_rows(), 24);
        let ranges = file.ranges([20, 0, 3, 4, 0, 7]).expect("rows inside");
        assert_eq!(ranges, [(0, 8192), (20480, 4096)]);
        assert_eq!(file.prefetch([0, 23]).expect("rows inside"), 2);
    }

    #[test]
    fn a_row_over_two_blocks_takes_both() {
        let (_place, file) = rows_of(3 * 3000, 3000);
        assert_eq!(file.expect("whole rows").ranges([1]).expect("inside"), [(0, 8192)]);
    }

    #[test]
    fn many_rows_are_asked_for_elsewhere() {
        let (_place, file) = rows_of(400 * 4096, 4096);
        let found = file.expect("whole rows").prefetch((0..400).step_by(2)).expect("inside");
        assert_eq!(found, 200);
    }

    #[test]
    fn refuses_rows_that_are_not_there() {
        let (_place, file) = rows_of(4096, 1024);
        let file = file.expect("whole rows");
        for row in [-1, 4] {
            let message = file.prefetch([row]).expect_err("outside").to_string();
            assert!(message.contains(&format!("row {row} of")) && message.contains("4 rows"), "{message}");
        }
    }

    #[test]
    fn a_part_begins_where_it_is_said_to() {
        let (place, _) = rows_of(3 * 4096, 4096);
        let path = place.path().join("table");
        let part = RowFile::open_part(&path, 1000, 4000, 8).expect("it fits");
        assert_eq!(part.num_rows(), 8);
        assert_eq!(part.ranges([0]).expect("inside"), [(0, 8192)]);
        assert_eq!(part.ranges([1, 7]).expect("inside"), [(4096, 8192)]);
        assert!(part.prefetch([8]).is_err());
        for (row_bytes, offset, num_rows) in [(1000, 4289, 8), (0, 0, 1), (u64::MAX, 1, 2)] {
            let message = RowFile::open_part(&path, row_bytes, offset, num_rows).err().expect("too long");
            assert!(message.to_string().contains("do not fit 12288 bytes"), "{message}");
        }
    }

    #[test]
    fn refuses_files_of_something_else() {
        for row_bytes in [1000, 0] {
            let (_place, file) = rows_of(4096, row_bytes);
            assert!(file.err().expect("no whole rows").to_string().contains("no whole rows"));
        }
    }
}
