//! Which of the unsynced changes to a file survive a power cut.

use std::ops::Range;

use fastrand::Rng;

/// A way in which the unsynced changes are kept or lost. Changes are numbered in their order.
#[derive(Debug)]
pub enum Kept {
    Nothing,
    Everything,
    First(usize),
    AllBut(usize),
    Only(usize),
    /// Each sector has its state after a random number of changes: the kernel may write back a page
    /// at any time, with its content at that time.
    Sectors {
        size: usize,
        salt: u64,
    },
    /// Each sector of each write is kept, torn or lost independently of the others.
    Pieces {
        size: usize,
        kept: f32,
        torn: f32,
    },
}

impl Kept {
    pub fn drawn(pending: usize, rng: &mut Rng) -> Self {
        if pending == 0 {
            return Self::Nothing;
        }
        let size = if rng.bool() { 512 } else { 4096 };
        match rng.u8(..10) {
            0 | 1 => Self::Nothing,
            2 => Self::Everything,
            3 => Self::First(rng.usize(..=pending)),
            4 => Self::AllBut(rng.usize(..pending)),
            5 => Self::Only(rng.usize(..pending)),
            6 | 7 => Self::Sectors {
                size,
                salt: rng.u64(..),
            },
            _ => Self::Pieces {
                size,
                kept: [0.1, 0.5, 0.9][rng.usize(..3)],
                torn: [0.0, 0.1, 0.5][rng.usize(..3)] / 2.0,
            },
        }
    }

    /// Returns whether a change that cannot be kept in part is kept.
    pub fn has(&self, index: usize, pending: usize, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::First(count) => index < *count,
            Self::AllBut(one) => index != *one,
            Self::Only(one) => index == *one,
            Self::Sectors { salt, .. } => index < drawn_by(*salt, usize::MAX, pending),
            Self::Pieces { kept, .. } => rng.f32() < *kept,
        }
    }

    /// Returns the parts of a write that are kept, each with its offset in the file.
    pub fn of_write(
        &self,
        index: usize,
        pending: usize,
        offset: usize,
        data: &Range<usize>,
        rng: &mut Rng,
    ) -> Vec<(usize, Range<usize>)> {
        let size = match self {
            Self::Sectors { size, .. } | Self::Pieces { size, .. } => *size,
            // In the other cases, a write is kept completely or not at all.
            _ => {
                return match self.has(index, pending, rng) {
                    true => vec![(offset, data.clone())],
                    false => Vec::new(),
                };
            }
        };
        let mut parts = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let sector = (offset + at) / size;
            let end = data.len().min((sector + 1) * size - offset);
            let part = match self {
                Self::Sectors { salt, .. } if index < drawn_by(*salt, sector, pending) => at..end,
                Self::Pieces { kept, torn, .. } => match rng.f32() {
                    drawn if drawn < *kept => at..end,
                    drawn if drawn < *kept + *torn => at..rng.usize(at..end),
                    drawn if drawn < *kept + 2.0 * *torn => rng.usize(at..end)..end,
                    _ => at..at,
                },
                _ => at..at,
            };
            if !part.is_empty() {
                parts.push((
                    offset + part.start,
                    data.start + part.start..data.start + part.end,
                ));
            }
            at = end;
        }
        parts
    }
}

/// Returns a number from 0 to `pending`, always the same for the same sector.
fn drawn_by(salt: u64, sector: usize, pending: usize) -> usize {
    Rng::with_seed(salt ^ (sector as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).usize(..=pending)
}
