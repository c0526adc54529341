//! A request inside the engine: the group of its choices, and the sequence of each.

use std::time::Duration;

use hearth_kernels::sample::Sampling;

use super::handle::Permit;
use super::prefix::Name;
use super::request::{Logprobs, Mask, Request};
use super::stream::Events;

/// A request. Its first choice computes the prompt; the others begin when that is done and find it in the cache.
pub(crate) struct Group {
    pub request: Request,
    /// Length, prompt and output, at which each choice ends.
    pub limit: u32,
    pub events: Events,
    /// Its place in the queue, until it begins.
    pub permit: Option<Permit>,
    pub submitted: Duration,
    pub deadline: Option<Duration>,
    /// Order of submission, unique.
    pub arrival: u64,
    /// Where the names of its blocks begin.
    pub root: Name,
    /// How prompt rows are scored, if they are.
    pub scoring: Option<Sampling>,
    pub prompt_logprobs: Vec<Option<Logprobs>>,
    pub prompt_sent: bool,
    /// Its first token is sent.
    pub spoken: bool,
    /// Prompt tokens found in the cache when it began.
    pub cached: u32,
    /// The next choice to begin; those before have.
    pub next_choice: u32,
    /// Choices that have not ended.
    pub live: u32,
    /// Slots of the sequences of choices that have begun and not ended.
    pub members: Vec<u32>,
    /// Events that rows in flight may send.
    pub reserved: u32,
    /// Since when its reader left no room.
    pub paused: Option<Duration>,
}

impl Group {
    pub fn new(request: Request, limit: u32, events: Events, permit: Permit, now: Duration) -> Self {
        let choices = request.choices.max(1);
        let scoring = request.prompt_logprobs.map(|n| Sampling { logprobs: Some(n), ..Sampling::default() });
        let mut prompt_logprobs = Vec::new();
        if scoring.is_some() {
            prompt_logprobs.reserve(request.prompt.len());
            prompt_logprobs.push(None);
        }
        Self {
            limit,
            events,
            permit: Some(permit),
            submitted: now,
            deadline: request.deadline.map(|deadline| now.saturating_add(deadline)),
            arrival: 0,
            root: 0,
            scoring,
            prompt_logprobs,
            prompt_sent: false,
            spoken: false,
            cached: 0,
            next_choice: 0,
            live: choices,
            members: Vec::with_capacity(choices as usize),
            reserved: 0,
            paused: None,
            request,
        }
    }

    pub fn prompt(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    /// Prompt rows to compute before the prompt counts as done. The last token of a sequence that draws nothing is
    /// never computed.
    pub fn prompt_goal(&self) -> u32 {
        self.prompt().min(self.limit - 1)
    }

    /// Free places its stream must have before one more draw: that draw's token and end, the prompt's event, and an
    /// end without a draw, beside what is in flight.
    pub fn room_to_draw(&self) -> usize {
        self.reserved as usize + 4
    }

    /// The next prompt position that must give a score; positions before have given theirs.
    pub fn score_from(&self) -> Option<u32> {
        (self.scoring.is_some() && !self.prompt_sent).then(|| self.prompt_logprobs.len() as u32 - 1)
    }
}

/// One choice of a request, moving `computed` towards the tokens it knows.
pub(crate) struct Sequence {
    pub group: u32,
    pub choice: u32,
    pub arrival: u64,
    /// Unique, unlike its slot.
    pub id: u64,
    /// Prompt and output.
    pub tokens: Vec<u32>,
    pub prompt: u32,
    pub limit: u32,
    /// One token more is being drawn: row of the sampling launched last.
    pub pending: Option<u32>,
    /// Positions whose keys and values are written once every step launched so far is done.
    pub computed: u32,
    /// Positions whose step was collected.
    pub collected: u32,
    pub blocks: Vec<u32>,
    /// Names of its full blocks, as far as they were needed.
    pub names: Vec<Name>,
    /// Blocks, from the first, that the index knows.
    pub named: u32,
    pub epoch: u32,
    pub begun: bool,
    /// When its last token was sent.
    pub spoke: Option<Duration>,
    /// Distinct tokens and their count in the output, ascending; empty while no penalty is on.
    pub seen: Vec<(u32, u32)>,
    pub mask: Option<Box<dyn Mask>>,
    /// The mask of the next draw, where one is needed.
    pub allowed: Vec<u32>,
    pub masked: bool,
}

impl Sequence {
    /// Takes the memory it will ever need, so that no step has to.
    pub fn new(group: &Group, slot: u32, choice: u32, id: u64, block_size: u32, vocab: u32) -> Self {
        let request = &group.request;
        let limit = group.limit as usize;
        let mut tokens = Vec::with_capacity(limit);
        tokens.extend_from_slice(&request.prompt);
        let mut seen = Vec::new();
        if penalised(&request.sampling) {
            seen.reserve(limit.min(vocab as usize));
            let mut distinct = request.prompt.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            seen.extend(distinct.into_iter().map(|token| (token, 0)));
        }
        let blocks = group.limit.div_ceil(block_size) as usize;
        Self {
            group: slot,
            choice,
            arrival: group.arrival,
            id,
            tokens,
            prompt: group.prompt(),
            limit: group.limit,
            pending: None,
            computed: 0,
            collected: 0,
            blocks: Vec::with_capacity(blocks),
            names: Vec::with_capacity(blocks),
            named: 0,
            epoch: 0,
            begun: false,
            spoke: None,
            seen,
            mask: None,
            allowed: Vec::new(),
            masked: false,
        }
    }

    /// Tokens, the one in flight included.
    pub fn known(&self) -> u32 {
        self.tokens.len() as u32 + u32::from(self.pending.is_some())
    }

    /// Rows to compute before the next draw. The token at the limit is never computed.
    pub fn left(&self) -> u32 {
        self.known().min(self.limit - 1) - self.computed
    }

    pub fn outputs(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt
    }

    pub fn order(&self) -> (u64, u32) {
        (self.arrival, self.choice)
    }

    pub fn push(&mut self, token: u32, sampling: &Sampling) {
        self.tokens.push(token);
        if penalised(sampling) {
            count(&mut self.seen, token);
        }
    }
}

fn penalised(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0
}

/// One more of `token` in an ascending list of tokens and their counts.
fn count(seen: &mut Vec<(u32, u32)>, token: u32) {
    match seen.binary_search_by_key(&token, |(token, _)| *token) {
        Ok(at) => seen[at].1 += 1,
        Err(at) => seen.insert(at, (token, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn drawn_tokens_are_counted_whether_or_not_the_prompt_has_them() {
        let mut seen = vec![(3, 0), (9, 0)];
        [9, 5, 9, 1, 5, 9].into_iter().for_each(|token| count(&mut seen, token));
        assert_eq!(seen, [(1, 1), (3, 0), (5, 2), (9, 3)]);
    }
}
