//! Fixed-width little-endian fields in order.

use super::Flaw;

/// Appends fields to a buffer.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(super) fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A length and then the bytes.
    pub(super) fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.u64(bytes.len() as u64).raw(bytes)
    }
}

/// Takes fields off the front of a slice; the slice may be anything.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Flaw> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| format!("ends {} bytes early", count - self.0.len()))?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Flaw> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Flaw> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Flaw> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A count whose items take at least `item_bytes` each, so that damage can't ask for
    /// more memory than the file has bytes.
    pub(super) fn count(&mut self, item_bytes: usize) -> Result<usize, Flaw> {
        let count = self.u64()?;
        let most = (self.0.len() / item_bytes.max(1)) as u64;
        if count > most {
            return Err(format!("announces {count} items where at most {most} fit"));
        }
        Ok(count as usize)
    }

    pub(super) fn blob(&mut self) -> Result<&'a [u8], Flaw> {
        let len = self.count(1)?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<String, Flaw> {
        String::from_utf8(self.blob()?.to_vec()).map_err(|_| "has a text field that is not UTF-8".into())
    }
}

/// CRC-32C of some bytes with the four at `hole` taken as zero: a checksum inside what it covers.
pub(super) fn crc_with_hole(bytes: &[u8], hole: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..hole]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[hole + 4..])
}

/// Puts the checksum into its hole.
pub(super) fn stamp_crc(bytes: &mut [u8], hole: usize) {
    let crc = crc_with_hole(bytes, hole);
    bytes[hole..hole + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Checks the checksum in its hole.
pub(super) fn check_crc(bytes: &[u8], hole: usize) -> Result<(), Flaw> {
    let mut stored = [0; 4];
    stored.copy_from_slice(&bytes[hole..hole + 4]);
    let (stored, computed) = (u32::from_le_bytes(stored), crc_with_hole(bytes, hole));
    if stored == computed {
        return Ok(());
    }
    Err(format!("has checksum {computed:08x} where {stored:08x} is recorded"))
}
