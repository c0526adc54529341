//! What came of a step (steps 8 and 9 in the life of a request): masks before the draw, then tokens to sequences, stop
//! rules, full blocks to the prefix index.
//!
//! A block gets its name only here, after the step that wrote it was collected, so nobody ever shares a block that is
//! still to be written or whose step failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hearth_kernels::sample::{SampleRow, Sampled};

use super::batch::{Batch, Entry};
use super::plan::{Scheduler, name};
use super::request::{Event, Finish, Logprobs};
use super::sequence::Group;
use super::stop;

impl Scheduler {
    /// Fills the masks of the rows that draw. A mask that fails ends its request.
    pub fn mask(&mut self, batch: &Batch) {
        for entry in batch.entries.iter().filter(|entry| entry.draws) {
            if !self.lives(entry) {
                continue;
            }
            let request = &self.groups[entry.group].request;
            let sequence = &mut self.sequences[entry.slot];
            let outputs = sequence.outputs();
            sequence.masked = sequence.mask.is_some() || stop::barred(request, outputs);
            if !sequence.masked {
                continue;
            }
            let vocab = self.capacity.vocab;
            sequence.allowed.clear();
            sequence.allowed.resize(vocab.div_ceil(32) as usize, u32::MAX);
            if let Some(mask) = &mut sequence.mask {
                let allowed = &mut sequence.allowed;
                if let Err(error) = guarded(|| mask.fill(allowed)) {
                    self.fail(entry.group, &format!("the grammar failed: {error}"));
                    continue;
                }
            }
            if !vocab.is_multiple_of(32)
                && let Some(last) = sequence.allowed.last_mut()
            {
                *last &= (1 << (vocab % 32)) - 1;
            }
            stop::bar(request, outputs, &mut sequence.allowed);
        }
    }

    /// The rows to sample: those of the batch whose sequences have not ended since it was planned.
    pub fn rows<'a>(&'a self, batch: &mut Batch, rows: &mut Vec<SampleRow<'a>>) {
        let mut logits = 0;
        for entry in &mut batch.entries {
            let first = logits;
            logits += entry.scored + u32::from(entry.draws);
            if !self.lives(entry) {
                continue;
            }
            entry.results = Some(rows.len() as u32);
            let group = &self.groups[entry.group];
            let sequence = &self.sequences[entry.slot];
            if let Some(scoring) = &group.scoring {
                rows.extend((0..entry.scored).map(|i| {
                    let position = entry.score_from + i + 1;
                    SampleRow {
                        row: first + i,
                        sampling: scoring,
                        choice: sequence.choice,
                        position,
                        seen: &[],
                        mask: None,
                        forced: Some(sequence.tokens[position as usize]),
                    }
                }));
            }
            if entry.draws {
                rows.push(SampleRow {
                    row: first + entry.scored,
                    sampling: &group.request.sampling,
                    choice: sequence.choice,
                    position: entry.end(),
                    seen: &sequence.seen,
                    mask: sequence.masked.then_some(&sequence.allowed[..]),
                    forced: None,
                });
            }
        }
    }

    /// The sampling is launched: its rows are what the next step's pending tokens wait for.
    pub fn sampled(&mut self, batch: &Batch) {
        for entry in batch.entries.iter().filter(|entry| entry.draws) {
            if let Some(results) = entry.results {
                self.sequences[entry.slot].pending = Some(results + entry.scored);
            }
        }
    }

    /// Takes the results of a step that was collected.
    pub fn commit(&mut self, batch: &mut Batch) {
        let Batch { entries, results, .. } = batch;
        let now = self.shared.clock.now();
        for entry in &*entries {
            self.unreserve(entry);
            self.shared.gauges.rows.fetch_add(entry.rows.into(), Relaxed);
            if self.lives(entry) {
                let choice = self.sequences[entry.slot].choice;
                if self.groups[entry.group].events.left(choice) {
                    self.shared.gauges.wasted_rows.fetch_add(entry.rows.into(), Relaxed);
                }
            }
            if let Some(first) = entry.results.filter(|_| self.lives(entry)) {
                let count = (entry.scored + u32::from(entry.draws)) as usize;
                self.apply(entry, &mut results[first as usize..][..count], now);
            }
        }
    }

    /// A step failed: its sequences' requests end, and nothing it wrote is ever shared.
    pub fn abandon(&mut self, batch: &Batch, error: &str) {
        for entry in &batch.entries {
            self.unreserve(entry);
            if self.lives(entry) {
                self.fail(entry.group, error);
            }
        }
    }

    fn apply(&mut self, entry: &Entry, results: &mut [Sampled], now: Duration) {
        let sequence = &mut self.sequences[entry.slot];
        if entry.draws {
            sequence.pending = None;
        }
        if let Some(error) = results.iter().find_map(|result| result.error) {
            return self.fail(entry.group, &error.to_string());
        }
        if sequence.epoch == entry.epoch {
            sequence.collected = entry.end();
        }
        let (scores, draw) = results.split_at_mut(entry.scored as usize);
        let group = &mut self.groups[entry.group];
        if group.score_from() == Some(entry.score_from) {
            group.prompt_logprobs.extend(scores.iter_mut().map(logprobs));
        }
        if !group.prompt_sent && entry.end() >= group.prompt_goal() {
            group.prompt_sent = true;
            let logprobs = std::mem::take(&mut group.prompt_logprobs);
            group.events.send(Event::Prompt { cached: group.cached, logprobs });
            self.share(entry.slot);
            if self.groups[entry.group].limit == self.groups[entry.group].prompt() {
                return self.finish_scored(entry.group);
            }
            self.spawn(entry.group, u32::MAX);
        } else {
            self.share(entry.slot);
        }
        if let [drawn] = draw {
            self.deliver(entry, drawn, now);
        }
    }

    /// Names the blocks that are full now, so that others may share them.
    fn share(&mut self, slot: u32) {
        let size = self.capacity.block_size;
        let sequence = &mut self.sequences[slot];
        let group = &self.groups[sequence.group];
        // A strict prompt that goes on where this one was answered computes the answer among others, not row by row.
        let most = if self.capacity.strict { sequence.prompt } else { u32::MAX };
        while (sequence.named + 1) * size <= sequence.collected.min(most) {
            let name = name(&self.namer, group, sequence, sequence.named, size);
            let block = &mut sequence.blocks[sequence.named as usize];
            *block = self.blocks.name(*block, name);
            sequence.named += 1;
        }
    }

    fn deliver(&mut self, entry: &Entry, drawn: &mut Sampled, now: Duration) {
        let group = &mut self.groups[entry.group];
        let sequence = &mut self.sequences[entry.slot];
        let (choice, token) = (sequence.choice, drawn.token);
        sequence.push(token, &group.request.sampling);
        group.events.send(Event::Token { choice, token, logprobs: logprobs(drawn) });
        self.shared.gauges.tokens_out.fetch_add(1, Relaxed);
        let timings = &self.shared.timings;
        match sequence.spoke.replace(now) {
            Some(before) => timings.between_tokens.observe(now.saturating_sub(before).as_secs_f64()),
            None if !std::mem::replace(&mut group.spoken, true) => {
                timings.first_token.observe(now.saturating_sub(group.submitted).as_secs_f64());
            }
            None => {}
        }
        let length = sequence.tokens.len() as u32;
        if let Some(reason) = stop::verdict(&group.request, token, length, group.limit) {
            return self.finish(entry.slot, reason);
        }
        if let Some(mask) = &mut sequence.mask
            && let Err(error) = guarded(|| mask.accept(token))
        {
            self.fail(entry.group, &format!("the grammar failed: {error}"));
        }
    }

    fn finish(&mut self, slot: u32, reason: Finish) {
        let sequence = &self.sequences[slot];
        let choice = sequence.choice;
        self.groups[sequence.group].events.send(Event::Finished { choice, reason });
        self.end_choice(slot);
    }

    /// The prompt is scored and no token is asked for: every choice has come to its end.
    fn finish_scored(&mut self, group: u32) {
        let mut group = self.groups.remove(group);
        self.over(&group);
        for slot in group.members.drain(..) {
            self.forget(slot);
        }
        for choice in 0..group.request.choices.max(1) {
            if !group.events.left(choice) {
                group.events.send(Event::Finished { choice, reason: Finish::Length });
            }
        }
        group.events.end(None);
    }

    /// Ends one choice without a word, and its group with the last of them.
    pub(super) fn end_choice(&mut self, slot: u32) {
        let group = self.drop_sequence(slot);
        self.groups[group].live -= 1;
        // The first choice may leave before the prompt is computed: the next one takes its place.
        let successor = !self.groups[group].prompt_sent && self.groups[group].members.is_empty();
        self.spawn(group, u32::from(successor));
    }

    /// A request came to its end, or its reader has left.
    pub(super) fn over(&self, group: &Group) {
        let took = self.shared.clock.now().saturating_sub(group.submitted);
        self.shared.timings.whole.observe(took.as_secs_f64());
        tracing::debug!(id = %group.request.id, ?took, "a request ends");
    }

    /// Ends a request and every choice of it with an error.
    pub fn fail(&mut self, group: u32, error: &str) {
        let mut failed = self.groups.remove(group);
        tracing::warn!(id = %failed.request.id, error, "a request failed");
        for slot in failed.members.drain(..) {
            self.forget(slot);
        }
        failed.events.end(Some(error.to_owned()));
    }

    pub fn fail_all(&mut self, error: &str) {
        let all: Vec<u32> = self.groups.iter().map(|(slot, _)| slot).collect();
        all.into_iter().for_each(|group| self.fail(group, error));
    }

    fn drop_sequence(&mut self, slot: u32) -> u32 {
        let group = self.sequences[slot].group;
        self.groups[group].members.retain(|member| *member != slot);
        self.forget(slot);
        group
    }

    fn forget(&mut self, slot: u32) {
        self.release(slot);
        self.running.retain(|other| *other != slot);
        self.waiting.retain(|other| *other != slot);
        self.sequences.remove(slot);
    }

    fn lives(&self, entry: &Entry) -> bool {
        self.sequences.get(entry.slot).is_some_and(|sequence| sequence.id == entry.id)
    }

    fn unreserve(&mut self, entry: &Entry) {
        if self.groups.get(entry.group).is_some_and(|group| group.arrival == entry.arrival) {
            self.groups[entry.group].reserved -= entry.events;
        }
    }

    /// Writes down what there is to see from outside.
    pub fn publish(&self) {
        let gauges = &self.shared.gauges;
        let begun = self.groups.iter().filter(|(_, group)| group.permit.is_none()).count();
        gauges.running.store(begun as u32, Relaxed);
        gauges.blocks_used.store(self.blocks.used(), Relaxed);
    }

    #[cfg(test)]
    pub fn audit(&self) {
        let held: Vec<u32> = self.sequences.iter().flat_map(|(_, s)| s.blocks.iter().copied()).collect();
        self.blocks.audit(&held);
        assert_eq!(self.running.len() + self.waiting.len(), self.sequences.len());
        for (slot, sequence) in self.sequences.iter() {
            assert!(self.groups[sequence.group].members.contains(&slot));
        }
    }
}

fn logprobs(sampled: &mut Sampled) -> Option<Logprobs> {
    let top = std::mem::take(&mut sampled.top);
    sampled.logprob.map(|logprob| Logprobs { logprob, top })
}

/// A mask is somebody else's code: its panic is its request's error.
fn guarded(call: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("it panicked".into()))
}
