//! An executor without a model: the next token is a function of the sequence's tokens.
//!
//! For tests and benchmarks of everything above a device. It keeps a "cache" of tokens instead of keys and values and
//! reads it through the block tables, so a wrong slot, a stale block or a lost write changes what comes out, as does, where
//! the capacity is strict, a row that is alone in its step and was not before; and it checks the contract of [`Executor`], step by step. Time, failures and panics are in the test's hand.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_kernels::sample::{RowError, SampleRow, Sampled};
use hearth_models::step::{PENDING, Step};

use super::executor::{Capacity, Executor, StepError};

/// What a slot of the cache holds.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Where the capacity is strict, marked if its row was alone in its step.
    token: u32,
    position: u32,
    /// Digest of the tokens up to here; 0 before the first write.
    chain: u64,
}

/// A device on which bits depend on it would say something else.
const ALONE: u32 = 1 << 31;

type Says = Box<dyn Fn(&[u32]) -> u32 + Send>;

pub struct Scripted {
    capacity: Capacity,
    overlaps: bool,
    checked: bool,
    says: Option<Says>,
    /// The script is said at any temperature.
    firm: bool,
    controls: Controls,
    cache: Vec<Entry>,
    /// Which step wrote a slot last, to find two writes of one step.
    written: Vec<u64>,
    /// Per row of logits of the step launched last: digest and tokens of its sequence up to the row.
    chains: Vec<u64>,
    ends: Vec<usize>,
    text: Vec<u32>,
    /// Tokens of the sampling launched last, for [`PENDING`].
    last: Vec<u32>,
    in_flight: VecDeque<Vec<Sampled>>,
    spare: Vec<Vec<Sampled>>,
    launched: u64,
    sampled: u64,
}

/// Where a step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Launch,
    LaunchPanics,
    Sample,
    Collect,
    CollectPanics,
    /// The first row sampled comes back as not a number; the step itself is well.
    Row,
}

/// The test's hand on a running [`Scripted`].
#[derive(Clone, Default)]
pub struct Controls(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    steps: u64,
    /// `Some(n)`: n more steps may be launched.
    permits: Option<u64>,
    delay: Duration,
    faults: Vec<(u64, Fault)>,
    always: Option<Fault>,
    violations: Vec<String>,
    rows: u64,
}

impl Controls {
    /// Lets `steps` more steps be launched; the one after waits.
    pub fn allow(&self, steps: u64) {
        let mut state = self.lock();
        state.permits = Some(state.permits.unwrap_or(0) + steps);
        self.0.moved.notify_all();
    }

    /// Takes the limit of [`allow`](Self::allow) away.
    pub fn run(&self) {
        self.lock().permits = None;
        self.0.moved.notify_all();
    }

    /// Waits until that many steps were launched in all.
    pub fn reached(&self, steps: u64) {
        let mut state = self.lock();
        while state.steps < steps {
            state = self.0.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes every step take this long.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Makes step `step` go wrong, counted from 0 over the executor's life.
    pub fn fail(&self, step: u64, fault: Fault) {
        self.lock().faults.push((step, fault));
    }

    /// Makes every step go wrong from now on, or none.
    pub fn fail_always(&self, fault: Option<Fault>) {
        self.lock().always = fault;
    }

    /// Steps launched, ever.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Rows computed, ever.
    pub fn rows(&self) -> u64 {
        self.lock().rows
    }

    /// What was wrong with the steps that were asked for. Tests end with this being empty.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, step: u64, kinds: &[Fault]) -> Option<Fault> {
        let state = self.lock();
        let planned = state.faults.iter().find(|(at, kind)| *at == step && kinds.contains(kind));
        planned.map(|(_, kind)| *kind).or(state.always.filter(|kind| kinds.contains(kind)))
    }
}

impl Scripted {
    pub fn new(capacity: Capacity) -> Self {
        let slots = (capacity.blocks * capacity.block_size) as usize;
        Self {
            capacity,
            overlaps: false,
            checked: true,
            says: None,
            firm: false,
            controls: Controls::default(),
            cache: vec![Entry::default(); slots],
            written: vec![0; slots],
            chains: Vec::new(),
            ends: Vec::new(),
            text: Vec::new(),
            last: Vec::new(),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            launched: 0,
            sampled: 0,
        }
    }

    /// Greedy rows give `next` of all tokens of the sequence, instead of a digest of them.
    pub fn says(mut self, next: impl Fn(&[u32]) -> u32 + Send + 'static) -> Self {
        self.says = Some(Box::new(next));
        self
    }

    /// Says what it says at any temperature.
    pub fn firm(mut self) -> Self {
        self.firm = true;
        self
    }

    /// Lets the engine plan a step while the one before is in flight, as on a GPU.
    pub fn overlapping(mut self) -> Self {
        self.overlaps = true;
        self
    }

    /// Looks at the last token and its position only and checks nothing: for benchmarks of what is above.
    pub fn unchecked(mut self) -> Self {
        self.checked = false;
        self
    }

    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// The token a greedy row gives after these, without [`says`](Self::says).
    pub fn next(tokens: &[u32], vocab: u32) -> u32 {
        (tokens.iter().fold(0, |chain, token| link(chain, *token)) % u64::from(vocab)) as u32
    }

    fn check(&self, ok: bool, what: impl FnOnce() -> String) {
        if !ok {
            let what = format!("step {}: {}", self.launched, what());
            self.controls.lock().violations.push(what.clone());
            panic!("the engine broke the executor's contract: {what}");
        }
    }

    fn check_shape(&self, step: &Step) {
        let c = self.capacity;
        let rows = step.rows();
        self.check(rows > 0 && rows <= c.rows as usize, || format!("{rows} rows of {}", c.rows));
        self.check(step.positions.len() == rows && step.slots.len() == rows, || "ragged rows".into());
        self.check(step.logits.len() <= c.logits as usize, || {
            format!("{} rows of logits", step.logits.len())
        });
        self.check(step.logits.windows(2).all(|w| w[0] < w[1]), || "logits rows are not ascending".into());
        self.check(step.logits.iter().all(|r| (*r as usize) < rows), || "logits of no row".into());
        self.check(step.tables.iter().all(|b| *b < c.blocks), || "a block that does not exist".into());
        let (mut row, mut table) = (0, 0);
        for span in &step.spans {
            self.check(span.row == row && span.rows > 0, || format!("rows of {span:?}"));
            self.check(span.table == table, || format!("table of {span:?}"));
            self.check(span.context >= span.rows && span.context <= c.context, || {
                format!("context of {span:?}")
            });
            row += span.rows;
            table += span.context.div_ceil(c.block_size);
        }
        self.check(row as usize == rows && table as usize == step.tables.len(), || {
            "spans do not cover".into()
        });
    }

    /// Writes the rows of a step and reads their sequences back.
    fn compute(&mut self, step: &Step) {
        let size = self.capacity.block_size;
        if self.checked {
            self.check_shape(step);
        }
        let stamp = self.launched + 1;
        for span in &step.spans {
            let table = &step.tables[span.table as usize..][..span.context.div_ceil(size) as usize];
            for i in 0..span.rows {
                let (row, position) = ((span.row + i) as usize, span.context - span.rows + i);
                let mut token = step.tokens[row];
                if token & PENDING != 0 {
                    let index = (token & !PENDING) as usize;
                    self.check(index < self.last.len(), || {
                        format!("row {row} waits for a token nobody draws")
                    });
                    token = self.last[index];
                }
                let slot = (table[(position / size) as usize] * size + position % size) as usize;
                if self.checked {
                    self.check(token < self.capacity.vocab, || format!("token {token} in row {row}"));
                    self.check(step.positions[row] == position, || format!("position of row {row}"));
                    self.check(step.slots[row] as usize == slot, || format!("slot of row {row}"));
                    self.check(self.written[slot] != stamp, || format!("slot {slot} is written twice"));
                    self.written[slot] = stamp;
                }
                let before = match position {
                    0 => 0,
                    p => {
                        self.cache[(table[((p - 1) / size) as usize] * size + (p - 1) % size) as usize].chain
                    }
                };
                if self.capacity.strict && span.rows == 1 {
                    token |= ALONE;
                }
                self.cache[slot] = Entry { token, position, chain: link(before, token) };
            }
        }
        self.read(step);
        if self.checked {
            self.check_sharing(step);
        }
    }

    /// Reads every position of every sequence, as attention does, and keeps what the logits rows saw.
    fn read(&mut self, step: &Step) {
        let size = self.capacity.block_size;
        self.chains.clear();
        self.ends.clear();
        self.text.clear();
        let mut logits = step.logits.iter().peekable();
        for span in &step.spans {
            let table = &step.tables[span.table as usize..][..span.context.div_ceil(size) as usize];
            let first = if self.checked { 0 } else { span.context - 1 };
            let (mut chain, start) = (0, self.text.len());
            for position in first..span.context {
                let entry = self.cache[(table[(position / size) as usize] * size + position % size) as usize];
                if self.checked {
                    chain = link(chain, entry.token);
                    self.check(entry.position == position && entry.chain == chain, || {
                        format!("position {position} of {span:?} holds another sequence's key")
                    });
                    self.text.push(entry.token & !ALONE);
                } else {
                    chain = entry.chain;
                }
                let row = (position + span.rows).wrapping_sub(span.context).wrapping_add(span.row);
                if position + span.rows >= span.context && logits.next_if_eq(&&row).is_some() {
                    self.chains.push(chain);
                    // Both ends of the text of this row, packed: sequences follow one another in `text`.
                    self.ends.push(start << 32 | self.text.len());
                }
            }
        }
    }

    /// A block that is written in this step belongs to one sequence alone.
    fn check_sharing(&self, step: &Step) {
        let size = self.capacity.block_size;
        for (i, span) in step.spans.iter().enumerate() {
            let first = (span.context - span.rows) / size;
            let written =
                &step.tables[span.table as usize..][first as usize..span.context.div_ceil(size) as usize];
            for (j, other) in step.spans.iter().enumerate() {
                let table = &step.tables[other.table as usize..][..other.context.div_ceil(size) as usize];
                let shared = i != j && written.iter().any(|block| table.contains(block));
                self.check(!shared, || format!("span {i} writes a block that span {j} reads"));
            }
        }
    }

    fn draw(&self, row: &SampleRow<'_>) -> Sampled {
        let vocab = u64::from(self.capacity.vocab);
        let chain = self.chains[row.row as usize];
        let ends = self.ends[row.row as usize];
        let text = &self.text[ends >> 32..ends & 0xffff_ffff];
        if self.checked {
            self.check(text.len() == row.position as usize, || {
                format!("a draw for position {} after {} tokens", row.position, text.len())
            });
            let penalised = row.sampling.repetition_penalty != 1.0
                || row.sampling.presence_penalty != 0.0
                || row.sampling.frequency_penalty != 0.0;
            if penalised && row.forced.is_none() {
                let known = |token: &u32| row.seen.iter().any(|(seen, _)| seen == token);
                self.check(text.iter().all(known), || "a penalised row does not know its tokens".into());
                let only = row
                    .seen
                    .iter()
                    .all(|(seen, n)| text.iter().filter(|t| *t == seen).count() >= (*n).max(1) as usize);
                self.check(only, || "a penalised row counts tokens that were not there".into());
            }
        }
        let greedy = match &self.says {
            Some(says) => u64::from(says(text)),
            None => chain,
        };
        let sampling = row.sampling;
        let drawn = if sampling.temperature == 0.0 || self.firm {
            greedy
        } else {
            let counter = u64::from(row.choice) << 32 | u64::from(row.position);
            mix(chain ^ mix(sampling.seed) ^ mix(counter))
        };
        let allowed =
            |token: u64| row.mask.is_none_or(|mask| mask[(token / 32) as usize] >> (token % 32) & 1 == 1);
        let token = match row.forced {
            Some(token) => Some(token),
            None => (0..vocab).map(|i| (drawn + i) % vocab).find(|t| allowed(*t)).map(|t| t as u32),
        };
        let Some(token) = token else {
            return Sampled { error: Some(RowError::NothingAllowed), ..Sampled::default() };
        };
        let logprob = |token: u64| -((mix(chain ^ mix(token)) % 1000) as f32) / 100.0 - 0.01;
        let alternatives = sampling.logprobs.map(u64::from);
        Sampled {
            token,
            error: None,
            logprob: alternatives.map(|_| logprob(u64::from(token))),
            top: (0..alternatives.unwrap_or(0))
                .map(|i| (chain.wrapping_add(i) % vocab, i))
                .map(|(t, i)| (t as u32, -0.01 * (i + 1) as f32))
                .collect(),
        }
    }

    fn failed(&self, fault: Fault) -> StepError {
        StepError(format!("scripted: {fault:?}"))
    }
}

impl Executor for Scripted {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn reset(&mut self) {
        self.in_flight.clear();
        self.last.clear();
        self.chains.clear();
        self.sampled = self.launched;
    }

    fn launch(&mut self, step: &Step) -> Result<(), StepError> {
        let delay = {
            let mut state = self.controls.lock();
            while state.permits == Some(0) {
                state = self.controls.0.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.permits = state.permits.map(|n| n - 1);
            state.rows += step.rows() as u64;
            state.delay
        };
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        self.check(self.sampled == self.launched, || "the step before was not sampled".into());
        let fault = self.controls.fault(self.launched, &[Fault::Launch, Fault::LaunchPanics]);
        if fault.is_none() {
            self.compute(step);
        }
        self.launched += 1;
        {
            let mut state = self.controls.lock();
            state.steps += 1;
            self.controls.0.moved.notify_all();
        }
        match fault {
            None => Ok(()),
            Some(Fault::LaunchPanics) => panic!("scripted: the launch panics"),
            Some(fault) => Err(self.failed(fault)),
        }
    }

    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<(), StepError> {
        self.check(self.sampled + 1 == self.launched, || "sampled without a launch".into());
        self.sampled += 1;
        let step = self.launched - 1;
        if let Some(fault) = self.controls.fault(step, &[Fault::Sample]) {
            return Err(self.failed(fault));
        }
        let depth = if self.overlaps { 2 } else { 1 };
        self.check(self.in_flight.len() < depth, || "too many steps in flight".into());
        let mut out = self.spare.pop().unwrap_or_default();
        out.extend(rows.iter().map(|row| self.draw(row)));
        if self.controls.fault(step, &[Fault::Row]).is_some()
            && let Some(first) = out.first_mut()
        {
            first.error = Some(RowError::NotANumber);
        }
        self.last.clear();
        self.last.extend(out.iter().map(|sampled| sampled.token));
        self.in_flight.push_back(out);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Sampled>) -> Result<(), StepError> {
        let step = self.launched - self.in_flight.len() as u64;
        let Some(mut results) = self.in_flight.pop_front() else {
            panic!("the engine broke the executor's contract: nothing is in flight");
        };
        match self.controls.fault(step, &[Fault::Collect, Fault::CollectPanics]) {
            None => {}
            Some(Fault::CollectPanics) => panic!("scripted: the collection panics"),
            Some(fault) => return Err(self.failed(fault)),
        }
        out.append(&mut results);
        self.spare.push(results);
        Ok(())
    }
}

/// Extends the digest of a sequence by a token. Never 0.
fn link(chain: u64, token: u32) -> u64 {
    mix(chain.rotate_left(17) ^ (u64::from(token) + 1)) | 1
}

/// SplitMix64's finaliser.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
