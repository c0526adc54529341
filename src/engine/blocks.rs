//! The cache's blocks, counted by reference.
//!
//! A block that nobody holds lies in one list, least valuable first: blocks without a name at the front, named ones in
//! the order in which they were given back. A named block keeps what it holds until it is taken from the front for
//! something else, so a later request with the same prefix finds it. Every operation is O(1) and allocates nothing:
//! the list is threaded through the blocks, and the index is made for twice their number.

use super::prefix::{Index, Name};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Block {
    holders: u32,
    /// Set while the index leads here.
    name: Option<Name>,
    before: u32,
    after: u32,
}

pub(crate) struct Blocks {
    blocks: Vec<Block>,
    first: u32,
    last: u32,
    free: u32,
    index: Index,
}

impl Blocks {
    pub fn new(count: u32) -> Self {
        let vacant = Block { holders: 0, name: None, before: NONE, after: NONE };
        let mut index = Index::default();
        index.reserve(2 * count as usize);
        let mut blocks =
            Self { blocks: vec![vacant; count as usize], first: NONE, last: NONE, free: 0, index };
        (0..count).for_each(|block| blocks.append(block));
        blocks
    }

    /// Blocks that nobody holds, named ones included.
    pub fn free(&self) -> u32 {
        self.free
    }

    pub fn used(&self) -> u32 {
        self.blocks.len() as u32 - self.free
    }

    /// The least valuable free block, held once and without a name.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.first;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        if let Some(name) = self.blocks[block as usize].name.take() {
            self.index.remove(&name);
        }
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// The block of that name, if there is one, and whether it is free.
    pub fn find(&self, name: Name) -> Option<(u32, bool)> {
        let block = *self.index.get(&name)?;
        Some((block, self.blocks[block as usize].holders == 0))
    }

    /// One more holder of a block that was found.
    pub fn share(&mut self, block: u32) {
        if self.blocks[block as usize].holders == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].holders += 1;
    }

    /// One holder less. The caller gives a sequence's blocks back last one first, so that its beginning, which others
    /// are likelier to share, is taken last.
    pub fn give(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        assert!(entry.holders > 0, "bug: a free block was given back");
        entry.holders -= 1;
        if entry.holders == 0 {
            match entry.name {
                Some(_) => self.append(block),
                None => self.prepend(block),
            }
        }
    }

    /// Names a full block that the caller holds, once what it holds is computed. If another block has the name, that
    /// one is returned, held by the caller in place of its own, which is given back: equal names mean equal bytes.
    pub fn name(&mut self, block: u32, name: Name) -> u32 {
        if let Some(&other) = self.index.get(&name) {
            if other != block {
                self.share(other);
                self.give(block);
            }
            return other;
        }
        debug_assert!(self.blocks[block as usize].holders > 0, "bug: a free block was named");
        self.blocks[block as usize].name = Some(name);
        self.index.insert(name, block);
        block
    }

    fn append(&mut self, block: u32) {
        let last = self.last;
        self.blocks[block as usize].before = last;
        self.blocks[block as usize].after = NONE;
        match last {
            NONE => self.first = block,
            last => self.blocks[last as usize].after = block,
        }
        self.last = block;
        self.free += 1;
    }

    fn prepend(&mut self, block: u32) {
        let first = self.first;
        self.blocks[block as usize].before = NONE;
        self.blocks[block as usize].after = first;
        match first {
            NONE => self.last = block,
            first => self.blocks[first as usize].before = block,
        }
        self.first = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { before, after, .. } = self.blocks[block as usize];
        match before {
            NONE => self.first = after,
            before => self.blocks[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.blocks[after as usize].before = before,
        }
        self.free -= 1;
    }

    /// Panics unless every block is either held as often as `held` says or in the list, once.
    #[cfg(test)]
    pub fn audit(&self, held: &[u32]) {
        let mut count = vec![0; self.blocks.len()];
        held.iter().for_each(|block| count[*block as usize] += 1);
        let (mut at, mut before, mut seen) = (self.first, NONE, 0);
        while at != NONE {
            assert_eq!(self.blocks[at as usize].holders, 0, "block {at} is held and in the list");
            assert_eq!(self.blocks[at as usize].before, before);
            (before, at, seen) = (at, self.blocks[at as usize].after, seen + 1);
        }
        assert_eq!(before, self.last);
        assert_eq!(seen, self.free);
        for (block, (entry, count)) in self.blocks.iter().zip(&count).enumerate() {
            assert_eq!(entry.holders, *count, "holders of block {block}");
        }
        assert_eq!(self.free as usize, count.iter().filter(|c| **c == 0).count(), "a block is lost");
        assert!(self.index.iter().all(|(name, b)| self.blocks[*b as usize].name == Some(*name)));
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.name.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_without_a_name_are_reused_before_prefixes_and_the_longest_idle_prefix_before_younger_ones() {
        let mut blocks = Blocks::new(4);
        let taken: Vec<_> = (0..4).map(|_| blocks.take().unwrap()).collect();
        assert_eq!(blocks.take(), None);
        blocks.name(taken[0], 100);
        blocks.name(taken[1], 101);
        blocks.name(taken[2], 102);
        // A sequence gives its blocks back from the tail: 1 before 0.
        [taken[1], taken[0], taken[3], taken[2]].iter().for_each(|b| blocks.give(*b));
        let again: Vec<_> = (0..4).map(|_| blocks.take().unwrap()).collect();
        assert_eq!(again, [taken[3], taken[1], taken[0], taken[2]]);
        assert_eq!(blocks.find(100), None, "a reused block has lost its name");
    }

    #[test]
    fn a_prefix_found_again_leaves_the_list_and_outlives_what_was_idle_longer() {
        let mut blocks = Blocks::new(2);
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        blocks.name(a, 1);
        blocks.name(b, 2);
        blocks.give(a);
        blocks.give(b);
        assert_eq!(blocks.find(1), Some((a, true)));
        blocks.share(a);
        assert_eq!(blocks.find(1), Some((a, false)));
        assert_eq!(blocks.free(), 1);
        assert_eq!(blocks.take(), Some(b));
        blocks.give(a);
        assert_eq!(blocks.find(1), Some((a, true)));
    }

    #[test]
    fn two_sequences_that_computed_the_same_block_end_up_sharing_one() {
        let mut blocks = Blocks::new(3);
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        assert_eq!(blocks.name(a, 7), a);
        assert_eq!(blocks.name(b, 7), a);
        blocks.audit(&[a, a]);
        blocks.give(a);
        blocks.give(a);
        blocks.audit(&[]);
        assert_eq!(blocks.find(7), Some((a, true)));
    }

    proptest! {
        #[test]
        fn no_order_of_operations_loses_a_block(ops in prop::collection::vec((0u8..5, any::<u16>()), 0..400)) {
            let mut blocks = Blocks::new(9);
            let mut held: Vec<u32> = Vec::new();
            for (op, pick) in ops {
                let at = |n: usize| pick as usize % n.max(1);
                match op {
                    0 | 1 => held.extend(blocks.take()),
                    2 if !held.is_empty() => blocks.give(held.swap_remove(at(held.len()))),
                    3 if !held.is_empty() => {
                        let i = at(held.len());
                        if blocks.blocks[held[i] as usize].name.is_none() {
                            held[i] = blocks.name(held[i], Name::from(pick % 12));
                        }
                    }
                    4 => {
                        if let Some((block, _)) = blocks.find(Name::from(pick % 12)) {
                            blocks.share(block);
                            held.push(block);
                        }
                    }
                    _ => {}
                }
                blocks.audit(&held);
            }
        }
    }
}
