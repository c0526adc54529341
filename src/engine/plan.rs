//! Which rows the next step computes (step 6 in the life of a request).
//!
//! There is no prompt phase and no decode phase. Every sequence moves `computed` towards the tokens it knows, all
//! under one budget of rows per step:
//!
//! 1. Sequences that lack one row, oldest first. At most as many sequences run as a step has rows and logits, so each
//!    of them gets its token in every step.
//! 2. Prompts that are under way, oldest first, in chunks. While anybody decodes, all prompt rows of a step together
//!    are at most `chunk`: that bounds the time between the others' tokens, at the price of a later first token.
//! 3. Waiting sequences in order of arrival, as long as the first of them fits: blocks for all it knows, and one more
//!    for each that runs, so that a newcomer is not thrown out by the next tokens of its neighbours. What the prefix
//!    index holds of it is shared instead of computed, up to its last token but one: one row must give logits.
//!
//! Where a decoding sequence needs a block and none is free, the youngest running sequence gives its own back and
//! waits to compute them again; its tokens, seed and place in line stay. The oldest sequence can so always get on, as
//! none is admitted that the whole cache could not hold. A step that preempted admits nobody.
//!
//! Strict ([`Capacity::strict`]) means that whether a position is computed alone or among others of its sequence is
//! settled by the request: chunks end at whole blocks or with the prompt, nothing that was drawn is shared, and a
//! sequence that comes back computes what it had drawn a row a step, as it did the first time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::batch::{Batch, Entry};
use super::blocks::Blocks;
use super::executor::Capacity;
use super::handle::{Config, Shared};
use super::prefix::Namer;
use super::request::{Event, Finish};
use super::sequence::{Group, Sequence};
use super::slots::Slots;

/// Every request of an engine and the cache they share. Knows nothing of devices and threads.
pub(crate) struct Scheduler {
    pub(super) capacity: Capacity,
    /// Sequences that run at the same time at most.
    most: usize,
    chunk: u32,
    slow_reader: Duration,
    prefix_cache: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) blocks: Blocks,
    pub(super) namer: Namer,
    pub(super) groups: Slots<Group>,
    pub(super) sequences: Slots<Sequence>,
    /// Sequences that hold blocks, oldest first.
    pub(super) running: Vec<u32>,
    /// Sequences that wait for blocks, oldest first.
    pub(super) waiting: VecDeque<u32>,
    arrivals: u64,
    ids: u64,
    /// Groups with a deadline or a reader that left no room: the clock matters to them.
    timed: bool,
    drain: Drain,
    scratch: Vec<u32>,
}

/// What is left of a step's budget.
struct Room {
    rows: u32,
    logits: u32,
}

/// How fast the queue empties, over windows in which it never was empty.
#[derive(Default)]
struct Drain {
    since: Option<Duration>,
    tokens: u64,
}

impl Scheduler {
    pub fn new(capacity: Capacity, config: &Config, shared: Arc<Shared>, key: &[u8; 16]) -> Self {
        // A strict chunk is a block at least, whose rows may all be scored: sequences that draw leave room for it.
        let least = if capacity.strict { capacity.block_size } else { 0 };
        assert!(
            !capacity.strict || least > 1 && least < capacity.rows.min(capacity.logits),
            "bug: a strict step of {} rows and {} of logits has no room for blocks of {least} and a draw",
            capacity.rows,
            capacity.logits
        );
        let (rows, logits) = (capacity.rows - least, capacity.logits - least);
        let most = config.sequences.min(rows).min(logits).max(1) as usize;
        Self {
            capacity,
            most,
            chunk: config.chunk.unwrap_or(capacity.rows / 4).clamp(least.max(1), capacity.rows),
            slow_reader: config.slow_reader,
            prefix_cache: config.prefix_cache,
            shared,
            blocks: Blocks::new(capacity.blocks),
            namer: Namer::new(key),
            groups: Slots::default(),
            sequences: Slots::default(),
            running: Vec::with_capacity(most),
            waiting: VecDeque::new(),
            arrivals: 0,
            ids: 0,
            timed: false,
            drain: Drain::default(),
            scratch: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.len() == 0
    }

    /// Whether something will happen by the passing of time alone.
    pub fn timed(&self) -> bool {
        self.timed
    }

    /// Takes a request in.
    pub fn submit(&mut self, mut group: Group) {
        self.arrivals += 1;
        group.arrival = self.arrivals;
        let private = (!self.prefix_cache).then_some(group.arrival);
        group.root = self.namer.root(group.request.salt, private);
        self.timed |= group.deadline.is_some();
        if group.limit == group.prompt() && (group.scoring.is_none() || group.prompt() == 1) {
            return self.nothing_to_do(group);
        }
        let slot = self.groups.insert(group);
        self.spawn(slot, 1);
    }

    /// A request for no tokens, and no scores or none to compute.
    fn nothing_to_do(&mut self, mut group: Group) {
        self.shared.gauges.tokens_in.fetch_add(group.prompt().into(), Relaxed);
        group.permit = None;
        let logprobs = std::mem::take(&mut group.prompt_logprobs);
        group.events.send(Event::Prompt { cached: 0, logprobs });
        for choice in 0..group.live {
            group.events.send(Event::Finished { choice, reason: Finish::Length });
        }
        group.events.end(None);
    }

    /// Begins up to `count` choices of a group that are still wanted. The group ends here if none is left.
    pub(super) fn spawn(&mut self, slot: u32, mut count: u32) {
        let group = &mut self.groups[slot];
        while count > 0 && group.next_choice < group.request.choices.max(1) {
            let choice = group.next_choice;
            group.next_choice += 1;
            if group.events.left(choice) {
                group.live -= 1;
                continue;
            }
            count -= 1;
            self.ids += 1;
            let capacity = self.capacity;
            let mut sequence =
                Sequence::new(group, slot, choice, self.ids, capacity.block_size, capacity.vocab);
            let last = group.next_choice >= group.request.choices;
            sequence.mask = match &group.request.mask {
                Some(mask) if !last => Some(mask.fork()),
                _ => group.request.mask.take(),
            };
            let order = sequence.order();
            let sequence = self.sequences.insert(sequence);
            group.members.push(sequence);
            let at = self.waiting.partition_point(|other| self.sequences[*other].order() < order);
            self.waiting.insert(at, sequence);
        }
        if group.live == 0 {
            let mut ended = self.groups.remove(slot);
            self.over(&ended);
            ended.events.end(None);
        }
    }

    /// Ends what nobody reads any more. Called when the bell was rung.
    pub fn sweep(&mut self) {
        let mut gone = std::mem::take(&mut self.scratch);
        let left = |s: &Sequence| self.groups[s.group].events.left(s.choice);
        gone.extend(self.sequences.iter().filter(|(_, s)| left(s)).map(|(slot, _)| slot));
        for slot in gone.drain(..) {
            self.end_choice(slot);
        }
        self.scratch = gone;
    }

    /// Fails what ran out of time: its deadline, or the patience with its reader.
    pub fn expire(&mut self, now: Duration) {
        if !self.timed {
            return;
        }
        let mut late = std::mem::take(&mut self.scratch);
        let slow = |group: &Group| {
            let stuck = group.paused.is_some_and(|since| now >= since + self.slow_reader);
            stuck && group.events.room() < group.room_to_draw()
        };
        let due = |group: &Group| group.deadline.is_some_and(|deadline| now >= deadline);
        late.extend(self.groups.iter().filter(|(_, g)| due(g) || slow(g)).map(|(slot, _)| slot));
        for slot in late.drain(..) {
            let group = &self.groups[slot];
            let error = match group.deadline {
                Some(deadline) if now >= deadline => {
                    let allowed = (deadline - group.submitted).as_secs_f32();
                    format!("the request did not end within its {allowed} s")
                }
                _ => format!("the reader took nothing for {} s", self.slow_reader.as_secs_f32()),
            };
            self.fail(slot, &error);
        }
        self.scratch = late;
        self.timed = self.groups.iter().any(|(_, g)| g.deadline.is_some() || g.paused.is_some());
    }

    /// Plans the next step. Returns whether there is anything to compute.
    pub fn plan(&mut self, batch: &mut Batch, now: Duration) -> bool {
        batch.clear();
        let mut room = Room { rows: self.capacity.rows, logits: self.capacity.logits };
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            let slot = self.running[at];
            at += 1;
            if self.sequences[slot].left() != 1 || !self.may_send(slot, now) {
                continue;
            }
            if !self.grow(slot, &mut preempted) {
                break;
            }
            self.enter(batch, slot, 1, &mut room);
        }
        let mut prompts = if batch.entries.is_empty() { room.rows } else { room.rows.min(self.chunk) };
        for at in 0..self.running.len() {
            let slot = self.running[at];
            if self.sequences[slot].left() > 1 && prompts > 0 {
                prompts -= self.chunk(batch, slot, prompts, &mut room, now);
            }
        }
        let least = if self.capacity.strict { self.capacity.block_size } else { 1 };
        while !preempted && prompts >= least && room.logits > 0 && self.running.len() < self.most {
            let Some(&slot) = self.waiting.front() else { break };
            if !self.admit(slot, now) {
                break;
            }
            prompts -= self.chunk(batch, slot, prompts, &mut room, now);
        }
        !batch.entries.is_empty()
    }

    /// Enters a chunk of at most `most` rows. Returns how many it has.
    fn chunk(&mut self, batch: &mut Batch, slot: u32, most: u32, room: &mut Room, now: Duration) -> u32 {
        let left = self.sequences[slot].left();
        let mut rows = self.whole(slot, left.min(most));
        if rows == left && !self.may_send(slot, now) {
            rows = self.whole(slot, rows - 1);
        }
        self.enter(batch, slot, rows, room)
    }

    /// How many of a sequence's next `rows` rows a step may compute together.
    fn whole(&self, slot: u32, rows: u32) -> u32 {
        if !self.capacity.strict {
            return rows;
        }
        let sequence = &self.sequences[slot];
        let (start, size) = (sequence.computed, self.capacity.block_size);
        let prompt = sequence.prompt.min(sequence.limit - 1);
        if start >= prompt {
            return rows.min(1);
        }
        let end = (start + rows).min(prompt);
        // The row that begins a block and ends the prompt is alone, whatever else there would be room for.
        let ends = end == prompt && (!(end - 1).is_multiple_of(size) || end - start == 1);
        if ends { end - start } else { (end / size * size).saturating_sub(start) }
    }

    /// Enters at most `rows` rows of a sequence, fewer where the rows of logits run out.
    fn enter(&mut self, batch: &mut Batch, slot: u32, mut rows: u32, room: &mut Room) -> u32 {
        let sequence = &self.sequences[slot];
        let group = &self.groups[sequence.group];
        let start = sequence.computed;
        let (mut scored, mut score_from) = (0, start);
        if let Some(next) = group.score_from() {
            score_from = next.max(start);
            scored = (start + rows).min(sequence.prompt - 1).saturating_sub(score_from);
            if scored > room.logits {
                rows = self.whole(slot, score_from + room.logits - start);
                scored = (start + rows).min(sequence.prompt - 1).saturating_sub(score_from);
            }
        }
        let known = sequence.known();
        let draws = |rows: u32| start + rows == known && known < sequence.limit;
        if draws(rows) && scored == room.logits {
            rows = self.whole(slot, rows - 1);
            scored = scored.min((start + rows).saturating_sub(score_from));
        }
        if rows == 0 {
            return 0;
        }
        let draws = draws(rows);
        let completes = !group.prompt_sent && start + rows >= group.prompt_goal();
        let entry = Entry {
            slot,
            id: sequence.id,
            group: sequence.group,
            arrival: sequence.arrival,
            epoch: sequence.epoch,
            start,
            rows,
            scored,
            score_from,
            draws,
            results: None,
            events: 2 * u32::from(draws) + 2 * u32::from(completes),
        };
        room.rows -= rows;
        room.logits -= scored + u32::from(draws);
        self.groups[entry.group].reserved += entry.events;
        batch.add(entry, sequence, self.capacity.block_size);
        self.sequences[slot].computed += rows;
        rows
    }

    /// Whether a group's stream has room for what one more draw may send. If not, it pauses from now on.
    fn may_send(&mut self, slot: u32, now: Duration) -> bool {
        let group = &mut self.groups[self.sequences[slot].group];
        let needed = group.room_to_draw();
        if group.events.room() >= needed || group.events.await_room() >= needed {
            group.paused = None;
            return true;
        }
        group.paused.get_or_insert(now);
        self.timed = true;
        false
    }

    /// Makes sure that a decoding sequence has the block of its next position. Returns whether it is still running.
    fn grow(&mut self, slot: u32, preempted: &mut bool) -> bool {
        let sequence = &self.sequences[slot];
        let needed = (sequence.computed + 1).div_ceil(self.capacity.block_size) as usize;
        while self.sequences[slot].blocks.len() < needed {
            if let Some(block) = self.blocks.take() {
                self.sequences[slot].blocks.push(block);
                continue;
            }
            let victim = *self.running.last().expect("bug: no sequence runs and no block is free");
            self.preempt(victim);
            *preempted = true;
            if victim == slot {
                return false;
            }
        }
        true
    }

    /// Takes the youngest running sequence's blocks away and lets it wait.
    fn preempt(&mut self, slot: u32) {
        self.running.pop();
        self.release(slot);
        let sequence = &mut self.sequences[slot];
        sequence.computed = 0;
        sequence.collected = 0;
        sequence.named = 0;
        sequence.epoch += 1;
        let order = sequence.order();
        let at = self.waiting.partition_point(|other| self.sequences[*other].order() < order);
        self.waiting.insert(at, slot);
        self.shared.gauges.preemptions.fetch_add(1, Relaxed);
    }

    /// Gives a sequence's blocks back, last one first.
    pub(super) fn release(&mut self, slot: u32) {
        let sequence = &mut self.sequences[slot];
        while let Some(block) = sequence.blocks.pop() {
            self.blocks.give(block);
        }
    }

    /// Lets the first waiting sequence run, if the blocks for everything it knows are there.
    fn admit(&mut self, slot: u32, now: Duration) -> bool {
        let size = self.capacity.block_size;
        let sequence = &mut self.sequences[slot];
        let group = &mut self.groups[sequence.group];
        let known = sequence.tokens.len() as u32;
        // Rows that are still to give a score cannot come from the cache.
        let reusable = group.score_from().unwrap_or(known).min(sequence.left() + sequence.computed - 1);
        let reusable = if self.capacity.strict { reusable.min(sequence.prompt) } else { reusable };
        let (mut hits, mut idle) = (0, 0);
        while (hits + 1) * size <= reusable {
            let name = name(&self.namer, group, sequence, hits, size);
            let Some((_, free)) = self.blocks.find(name) else { break };
            hits += 1;
            idle += u32::from(free);
        }
        let needed = known.div_ceil(size) - hits;
        if self.blocks.free() < idle + needed + self.running.len() as u32 {
            return false;
        }
        for hit in 0..hits {
            let (block, _) = self.blocks.find(sequence.names[hit as usize]).expect("bug: a hit has gone");
            self.blocks.share(block);
            sequence.blocks.push(block);
        }
        for _ in 0..needed {
            sequence.blocks.push(self.blocks.take().expect("bug: fewer blocks are free than were counted"));
        }
        sequence.computed = hits * size;
        sequence.collected = hits * size;
        sequence.named = hits;
        let gauges = &self.shared.gauges;
        if !sequence.begun {
            sequence.begun = true;
            gauges.prefix_queries.fetch_add(known.into(), Relaxed);
            gauges.prefix_hits.fetch_add((hits * size).into(), Relaxed);
        }
        if let Some(permit) = group.permit.take() {
            drop(permit);
            group.cached = hits * size;
            let waited = now.saturating_sub(group.submitted);
            self.shared.timings.queue_wait.observe(waited.as_secs_f64());
            tracing::debug!(id = %group.request.id, prompt = known, cached = group.cached, ?waited, "a request begins");
            gauges.tokens_in.fetch_add(known.into(), Relaxed);
            self.drain.left(known, now, &self.shared);
        }
        let order = sequence.order();
        self.waiting.pop_front();
        let at = self.running.partition_point(|other| self.sequences[*other].order() < order);
        self.running.insert(at, slot);
        true
    }
}

/// The name of a sequence's full block, made once.
pub(super) fn name(
    namer: &Namer,
    group: &Group,
    sequence: &mut Sequence,
    block: u32,
    size: u32,
) -> super::prefix::Name {
    while sequence.names.len() <= block as usize {
        let at = sequence.names.len() * size as usize;
        let parent = sequence.names.last().copied().unwrap_or(group.root);
        sequence.names.push(namer.next(parent, &sequence.tokens[at..at + size as usize]));
    }
    sequence.names[block as usize]
}

impl Drain {
    /// A request with that many prompt tokens has left the queue.
    fn left(&mut self, tokens: u32, now: Duration, shared: &Shared) {
        self.tokens += u64::from(tokens);
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_sub(since);
        if elapsed >= Duration::from_secs(1) {
            let rate = self.tokens as f64 / elapsed.as_secs_f64();
            let before = f64::from_bits(shared.gauges.rate.load(Relaxed));
            let rate = if before > 0.0 { (before + rate) / 2.0 } else { rate };
            shared.gauges.rate.store(rate.to_bits(), Relaxed);
            *self = Self { since: Some(now), tokens: 0 };
        }
        if shared.queue.is_empty() {
            *self = Self::default();
        }
    }
}
