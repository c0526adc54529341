//! Same request, same bytes: whatever the schedule, a row's logits are those of its sequence alone.

use std::cell::RefCell;
use std::collections::HashMap;

use hearth_models::step::Step;
use proptest::prelude::*;

use crate::golden::{self, BLOCKS, Rig, open};

/// One sequence on its way: what it says is fixed, where its keys and values lie is not.
struct Sequence {
    tokens: Vec<u32>,
    done: usize,
    table: Vec<u32>,
}

/// What the schedule does with a sequence in a step.
#[derive(Clone, Debug)]
enum Turn {
    /// Nothing.
    Wait,
    /// Computes up to so many of its tokens.
    Rows(usize),
    /// Loses its blocks and begins anew in others.
    Preempted,
    /// Begins anew on the full blocks of the sequence before it, which has the same beginning.
    Cached,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        2 => Just(Turn::Wait),
        4 => (1usize..40).prop_map(Turn::Rows),
        2 => Just(Turn::Rows(1)),
        1 => Just(Turn::Preempted),
        1 => Just(Turn::Cached),
    ]
}

/// Blocks that nobody has, in an order that the seed mixes.
fn free(sequences: &[Sequence], count: usize, seed: usize) -> Option<Vec<u32>> {
    let used: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.table.clone()).collect();
    let mixed = (0..BLOCKS).map(|i| ((i * 29 + seed * 13) % BLOCKS) as u32);
    let blocks: Vec<u32> = mixed.filter(|block| !used.contains(block)).take(count).collect();
    (blocks.len() == count).then_some(blocks)
}

thread_local! {
    /// Decoders are made once, and what each sequence gives alone is computed once.
    static RIGS: RefCell<HashMap<&'static str, (Rig, Rig)>> = RefCell::default();
}

fn run(name: &'static str, lengths: &[usize], steps: &[Vec<Turn>]) {
    RIGS.with_borrow_mut(|rigs| {
        let (rig, alone) =
            rigs.entry(name).or_insert_with(|| (Rig::new(&open(name), None), Rig::new(&open(name), None)));
        // All begin alike, so that blocks can be shared, and go on differently.
        let token = |of: usize, i: usize| (3 + (if i < 40 { i * 7 } else { i * 11 + of * 31 }) % 300) as u32;
        let mut sequences: Vec<Sequence> = Vec::new();
        for (of, length) in lengths.iter().enumerate() {
            let tokens = (0..*length).map(|i| token(of, i)).collect();
            sequences.push(Sequence { tokens, done: 0, table: Vec::new() });
        }
        let expected: Vec<Vec<Vec<f32>>> =
            sequences.iter().map(|sequence| alone.run(&sequence.tokens, 256)).collect();
        let block = rig.block;
        let finish = vec![Turn::Rows(usize::MAX); lengths.len()];
        for (seed, turns) in steps.iter().chain([&finish]).enumerate() {
            let mut step = Step::default();
            let mut rows = Vec::new();
            for (of, turn) in turns.iter().enumerate().take(lengths.len()) {
                match turn {
                    Turn::Wait => {}
                    Turn::Preempted => {
                        sequences[of].done = 0;
                        sequences[of].table.clear();
                    }
                    Turn::Cached => {
                        let Some(before) = of.checked_sub(1) else { continue };
                        let same = sequences[before].done.min(40).min(sequences[of].tokens.len() - 1);
                        let full = same / block;
                        let shared = sequences[before].table[..full].to_vec();
                        // A step in flight writes none of these: they are full.
                        sequences[of].table = shared;
                        sequences[of].done = full * block;
                    }
                    Turn::Rows(most) => {
                        let (done, all) = (sequences[of].done, sequences[of].tokens.len());
                        let count = (*most).min(all - done).min(256 - step.rows());
                        let wanted = (done + count).div_ceil(block).saturating_sub(sequences[of].table.len());
                        let Some(more) = free(&sequences, wanted, seed + of) else { continue };
                        if count == 0 {
                            continue;
                        }
                        sequences[of].table.extend(more);
                        let sequence = &sequences[of];
                        rows.extend((done..done + count).map(|position| (of, position)));
                        rig.rows(&mut step, &sequence.tokens[done..done + count], done, &sequence.table);
                        sequences[of].done += count;
                    }
                }
            }
            if rows.is_empty() {
                continue;
            }
            step.logits = (0..rows.len() as u32).collect();
            for ((of, position), logits) in rows.iter().zip(rig.logits(&step)) {
                let same = golden::bits(&logits) == golden::bits(&expected[*of][*position]);
                assert!(same, "{name}: position {position} of sequence {of} in step {seed}: {turns:?}");
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_row_has_the_bits_of_its_sequence_alone_whatever_the_schedule(
        lengths in prop::collection::vec(1usize..90, 1..12),
        steps in prop::collection::vec(prop::collection::vec(turn(), 12), 1..14),
    ) {
        for name in ["mistral-v0.1", "mixtral-8x7b-v0.1", "codegemma-2b", "codellama-13b"] {
            run(name, &lengths, &steps);
        }
    }
}

#[test]
fn thirty_two_sequences_in_one_batch_have_the_bits_of_each_alone() {
    let lengths: Vec<usize> = (0..32).map(|i| 1 + i * 5 % 37).collect();
    let decode = vec![vec![Turn::Rows(1); 32]; 6];
    for name in ["mistral-v0.1", "mixtral-8x7b-v0.1", "qwen2.5-coder-7b", "mistral-v0.3"] {
        run(name, &lengths, &decode);
    }
}
