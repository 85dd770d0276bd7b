//! The content of one file in its two images: what processes see, and what power loss
//! leaves.

use std::time::SystemTime;

use super::random::Seeded;

/// What a disk writes or loses as a unit, in bytes.
pub(super) const SECTOR_BYTES: usize = 512;

/// A write that no sync has made durable yet.
#[derive(Clone)]
struct Pending {
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    pub(super) modified: SystemTime,
}

impl Content {
    pub(super) fn empty() -> Self {
        Self { live: Vec::new(), durable: Vec::new(), pending: Vec::new(), modified: SystemTime::now() }
    }

    pub(super) fn write(&mut self, bytes: Vec<u8>, offset: usize) {
        put(&mut self.live, &bytes, offset);
        self.pending.push(Pending { offset, bytes });
        self.modified = SystemTime::now();
    }

    pub(super) fn sync(&mut self) {
        // Not a copy of `live`: the cost is that of what was written.
        for write in self.pending.drain(..) {
            put(&mut self.durable, &write.bytes, write.offset);
        }
    }

    /// Changes one bit of both images, as a failing medium does.
    pub(super) fn flip_bit(&mut self, bit: u64) {
        let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        for image in [&mut self.live, &mut self.durable] {
            if let Some(byte) = image.get_mut(byte) {
                *byte ^= mask;
            }
        }
    }

    /// What is found after power loss: the durable bytes, and of each pending write
    /// nothing, all, a leading part, or any subset of its sectors. A later write may
    /// survive where an earlier one is lost.
    pub(super) fn after_crash(&self, random: &mut Seeded) -> Self {
        let mut durable = self.durable.clone();
        for write in &self.pending {
            let num_sectors = sectors(write).count() as u64;
            let fate = random.below(5);
            let kept = random.below(num_sectors + 1);
            for (index, (at, bytes)) in sectors(write).enumerate() {
                let survives = match fate {
                    0 => false,
                    1 => true,
                    2 => (index as u64) < kept,
                    _ => random.one_in(2),
                };
                if survives {
                    put(&mut durable, bytes, at);
                }
            }
            if fate == 4 && random.one_in(2) {
                // The length reached the disk, and the end of the data did not.
                let end = write.offset + write.bytes.len();
                durable.resize(durable.len().max(end), 0);
            }
        }
        Self { live: durable.clone(), durable, pending: Vec::new(), modified: self.modified }
    }
}

/// The pieces of a write that lie in one sector of the file each.
fn sectors(write: &Pending) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = write.offset;
    let mut rest = &write.bytes[..];
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = SECTOR_BYTES - at % SECTOR_BYTES;
        let (piece, after) = rest.split_at(rest.len().min(room));
        let found = (at, piece);
        at += piece.len();
        rest = after;
        Some(found)
    })
}

fn put(image: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if !bytes.is_empty() && image.len() < end {
        image.resize(end, 0);
    }
    if !bytes.is_empty() {
        image[offset..end].copy_from_slice(bytes);
    }
}
