//! The engine's thread, first cut: one request after another, so that what is above can be built.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;

use hearth_kernels::paged::Span;
use hearth_kernels::sample::SampleRow;
use hearth_models::step::Step;

use super::executor::{Executor, StepError};
use super::handle::{Command, Config, Shared};
use super::request::{Event, Finish, Logprobs};
use super::sequence::Group;

pub(crate) struct Thread {
    executor: Box<dyn Executor>,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
}

impl Thread {
    pub fn new(
        executor: Box<dyn Executor>,
        _: Config,
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
    ) -> Self {
        Self { executor, shared, inbox }
    }

    pub fn run(mut self) {
        while let Ok(Command::Submit(mut group)) = self.inbox.recv() {
            group.permit = None;
            self.shared.gauges.running.store(1, Relaxed);
            let failed = self.serve(&mut group).err().map(|e| e.to_string());
            self.shared.gauges.running.store(0, Relaxed);
            group.events.end(failed);
        }
        self.shared.ended();
    }

    fn serve(&mut self, group: &mut Group) -> Result<(), StepError> {
        group.events.send(Event::Prompt { cached: 0, logprobs: Vec::new() });
        for choice in 0..group.request.choices {
            let mut tokens = group.request.prompt.to_vec();
            let mut computed = 0;
            let mut reason = Finish::Length;
            while (tokens.len() as u32) < group.limit && !group.events.left(choice) {
                let mut step = Step::default();
                let size = self.executor.capacity().block_size;
                let context = (tokens.len() as u32).min(computed + self.executor.capacity().rows);
                step.tokens.extend(&tokens[computed as usize..context as usize]);
                step.positions.extend(computed..context);
                step.slots.extend(computed..context);
                step.tables.extend(0..context.div_ceil(size));
                step.spans.push(Span { row: 0, rows: context - computed, table: 0, context });
                let last = context as usize == tokens.len();
                if last {
                    step.logits.push(context - computed - 1);
                }
                let sampling = &group.request.sampling;
                let row = SampleRow {
                    row: 0,
                    sampling,
                    choice,
                    position: context,
                    seen: &[],
                    mask: None,
                    forced: None,
                };
                self.executor.launch(&step)?;
                self.executor.sample(if last { std::slice::from_ref(&row) } else { &[] })?;
                let mut out = Vec::new();
                self.executor.collect(&mut out)?;
                computed = context;
                for sampled in out {
                    let logprobs = sampled.logprob.map(|logprob| Logprobs { logprob, top: sampled.top });
                    while group.events.room() < 2 && !group.events.left(choice) {
                        std::thread::yield_now();
                    }
                    tokens.push(sampled.token);
                    if !group.events.left(choice) {
                        group.events.send(Event::Token { choice, token: sampled.token, logprobs });
                    }
                    if group.request.stop_tokens.contains(&sampled.token) {
                        reason = Finish::Stop;
                    }
                }
                if reason == Finish::Stop {
                    break;
                }
            }
            if !group.events.left(choice) {
                group.events.send(Event::Finished { choice, reason });
            }
        }
        Ok(())
    }
}
