//! Access patterns of the cache, and the best hit rate that any policy could reach on
//! them. For tests and benchmarks: deterministic by seed, in memory, without a store.

use std::collections::BTreeSet;

use super::{KeyMap, Policy};
use crate::key::PageKey;

/// One step of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The page came into being and is resident, whatever the policy thinks of it.
    Seal(u32),
    /// The page is read: from RAM if it is there, else from disk.
    Read(u32),
}

impl Access {
    fn page(self) -> u32 {
        match self {
            Self::Seal(page) | Self::Read(page) => page,
        }
    }
}

/// A sequence of accesses to the pages `0..num_pages`.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The name that tables use.
    pub name: &'static str,
    /// What happens, in order.
    pub accesses: Vec<Access>,
    /// Distinct pages.
    pub num_pages: u32,
}

/// The key of page number `page`: uniform, as real keys are.
pub fn page_key(page: u32) -> PageKey {
    let mut random = Random(u64::from(page) << 32);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random.next().to_le_bytes());
    key[8..].copy_from_slice(&random.next().to_le_bytes());
    PageKey(key)
}

/// The traces of the hit-rate table.
pub fn all(seed: u64) -> [Trace; 5] {
    [cyclic(2000, 30), growing(1000, 2000, 30), sparse(seed), polluted(seed), switching(seed)]
}

/// Exact decoding: every page of every layer, in the same order, at each step.
pub fn cyclic(num_pages: u32, passes: u32) -> Trace {
    let mut accesses: Vec<_> = (0..num_pages).map(Access::Seal).collect();
    for _ in 0..passes {
        accesses.extend((0..num_pages).map(Access::Read));
    }
    Trace { name: "cyclic", accesses, num_pages }
}

/// Exact decoding of a long answer: as `cyclic`, and pages are sealed between passes
/// until there are `last` of them.
pub fn growing(first: u32, last: u32, passes: u32) -> Trace {
    let mut accesses: Vec<_> = (0..first).map(Access::Seal).collect();
    for pass in 1..=passes {
        let sealed = first + (last - first) * (pass - 1) / passes;
        let grown = first + (last - first) * pass / passes;
        accesses.extend((0..sealed).map(Access::Read));
        accesses.extend((sealed..grown).map(Access::Seal));
    }
    Trace { name: "growing", accesses, num_pages: last }
}

/// Sparse decoding: per step and layer the sinks, the window, and pages drawn by Zipf
/// popularity, of which a few change rank now and then as the topic drifts.
pub fn sparse(seed: u64) -> Trace {
    const LAYERS: u32 = 8;
    const PAGES: u32 = 300;
    const STEPS: u32 = 600;
    const READ_PER_STEP: u32 = 16;
    let mut random = Random(seed);
    let zipf = Zipf::new(PAGES, 0.9);
    let mut accesses: Vec<_> = (0..LAYERS * PAGES).map(Access::Seal).collect();
    let mut ranks: Vec<Vec<u32>> = (0..LAYERS).map(|_| random.shuffled(PAGES)).collect();
    for step in 0..STEPS {
        for (layer, rank) in (0..LAYERS).zip(&mut ranks) {
            if step % 20 == 19 {
                // Popular pages change places with arbitrary ones.
                for _ in 0..4 {
                    let popular = zipf.draw(&mut random) as usize;
                    rank.swap(popular, random.below(PAGES) as usize);
                }
            }
            let mut read = |page| accesses.push(Access::Read(layer * PAGES + page));
            read(0);
            (0..READ_PER_STEP).for_each(|_| read(rank[zipf.draw(&mut random) as usize]));
            (PAGES - 2..PAGES).for_each(&mut read);
        }
    }
    Trace { name: "sparse", accesses, num_pages: LAYERS * PAGES }
}

/// Four sessions decode sparsely in turns; in the middle, a long document is prefilled:
/// each of its pages is sealed, read once soon after and never again.
pub fn polluted(seed: u64) -> Trace {
    const SESSIONS: u32 = 4;
    const PAGES: u32 = 200;
    const DOCUMENT: u32 = 3200;
    let mut random = Random(seed ^ 1);
    let zipf = Zipf::new(PAGES, 0.8);
    let num_hot = SESSIONS * PAGES;
    let mut accesses: Vec<_> = (0..num_hot).map(Access::Seal).collect();
    let ranks: Vec<Vec<u32>> = (0..SESSIONS).map(|_| random.shuffled(PAGES)).collect();
    for step in 0..4000 {
        let session = step % SESSIONS;
        for _ in 0..12 {
            let page = ranks[session as usize][zipf.draw(&mut random) as usize];
            accesses.push(Access::Read(session * PAGES + page));
        }
        let done = |step: u32| num_hot + DOCUMENT * step.saturating_sub(1000).min(2000) / 2000;
        accesses.extend((done(step)..done(step + 1)).map(Access::Seal));
        // The attention of the next chunk reads what was sealed a little earlier.
        let lag = |step: u32| done(step.saturating_sub(16));
        accesses.extend((lag(step)..lag(step + 1)).map(Access::Read));
    }
    Trace { name: "polluted", accesses, num_pages: num_hot + DOCUMENT }
}

/// One session after the other, then the first again; each is read in passes that take
/// most of its pages, in order.
pub fn switching(seed: u64) -> Trace {
    const PAGES: u32 = 500;
    let mut random = Random(seed ^ 2);
    let mut accesses: Vec<_> = (0..3 * PAGES).map(Access::Seal).collect();
    for session in [0, 1, 2, 0] {
        for _ in 0..20 {
            for page in 0..PAGES {
                if random.below(10) < 8 {
                    accesses.push(Access::Read(session * PAGES + page));
                }
            }
        }
    }
    Trace { name: "switching", accesses, num_pages: 3 * PAGES }
}

/// The share of reads that `policy` serves from `capacity` pages of RAM.
///
/// # Panics
/// When RAM is full and the policy names no victim.
pub fn hit_rate(policy: &mut dyn Policy, trace: &Trace, capacity: usize) -> f64 {
    let keys: Vec<_> = (0..trace.num_pages).map(page_key).collect();
    let numbers: KeyMap<usize> = keys.iter().copied().zip(0..).collect();
    let mut resident = vec![false; keys.len()];
    let (mut hits, mut reads) = (0_u64, 0_u64);
    for access in &trace.accesses {
        let page = access.page() as usize;
        if let Access::Read(_) = access {
            reads += 1;
            if resident[page] {
                hits += 1;
                policy.touch(keys[page]);
                continue;
            }
            if !policy.admit(keys[page]) {
                continue;
            }
        }
        if policy.len() >= capacity {
            let victim = policy.victim(&mut |_| true);
            assert!(victim.is_some(), "RAM is full and no page leaves it");
            if let Some(victim) = victim {
                policy.remove(victim);
                resident[numbers[&victim]] = false;
            }
        }
        policy.insert(keys[page], 1);
        resident[page] = true;
    }
    hits as f64 / reads as f64
}

/// The share of reads that the best policy could serve: the page whose next read is
/// furthest away leaves, which may be the one just read.
///
/// Source: L. Belady, "A study of replacement algorithms for a virtual-storage computer",
/// IBM Systems Journal 5(2), 1966; with bypass, as `Policy::admit` allows it.
pub fn optimal_hit_rate(trace: &Trace, capacity: usize) -> f64 {
    // When the page of each access is read next. Pages are not sealed twice.
    let mut next_read = vec![usize::MAX; trace.num_pages as usize];
    let mut next_reads = vec![usize::MAX; trace.accesses.len()];
    for (time, access) in trace.accesses.iter().enumerate().rev() {
        next_reads[time] = next_read[access.page() as usize];
        next_read[access.page() as usize] = time;
    }
    let mut resident = BTreeSet::new();
    let (mut hits, mut reads) = (0_u64, 0_u64);
    for (time, access) in trace.accesses.iter().enumerate() {
        if let Access::Read(page) = *access {
            reads += 1;
            hits += u64::from(resident.remove(&(time, page)));
        }
        resident.insert((next_reads[time], access.page()));
        if resident.len() > capacity {
            resident.pop_last();
        }
    }
    hits as f64 / reads as f64
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    fn shuffled(&mut self, count: u32) -> Vec<u32> {
        let mut pages: Vec<_> = (0..count).collect();
        for last in (1..count).rev() {
            pages.swap(last as usize, self.below(last + 1) as usize);
        }
        pages
    }
}

/// Draws ranks with probability proportional to `1 / (rank + 1)^exponent`.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(count: u32, exponent: f64) -> Self {
        let mut total = 0.0;
        let cumulative = (1..=count)
            .map(|rank| {
                total += f64::from(rank).powf(-exponent);
                total
            })
            .collect();
        Self { cumulative }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let total = self.cumulative.last().copied().unwrap_or_default();
        let point = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 * total;
        self.cumulative.partition_point(|&below| below <= point).min(self.cumulative.len() - 1) as u32
    }
}
