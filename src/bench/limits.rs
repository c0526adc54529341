//! How slow an answer may be before people notice: what a sizing must hold.

use serde::{Deserialize, Serialize};

use super::profile::Kind;
use super::result::Run;

/// Within these 95 of 100 requests must stay, in milliseconds, and none may fail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The first token of a completion: later, the developer has typed on.
    pub completion_first_ms: f64,
    /// The first token of an answer in a conversation.
    pub chat_first_ms: f64,
    /// A token on average over an answer: about as fast as people read.
    pub token_ms: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { completion_first_ms: 500.0, chat_first_ms: 2000.0, token_ms: 60.0 }
    }
}

/// What a run says about the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Holds,
    /// In words.
    Breaks(String),
    /// Too little was measured to say.
    Open(String),
}

impl Limits {
    pub fn first(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Completion => self.completion_first_ms,
            Kind::Chat => self.chat_first_ms,
        }
    }

    pub fn judge(&self, run: &Run) -> Verdict {
        let lost = run.refused + run.failed;
        if lost > 0 {
            let why = run.first_failure.as_deref().unwrap_or("no reason given");
            return Verdict::Breaks(format!("{lost} requests were not answered ({why})"));
        }
        if let Some(why) = &run.ended {
            return match run.late {
                true => Verdict::Breaks(why.clone()),
                false => Verdict::Open(why.clone()),
            };
        }
        let mut open = None;
        for (kind, times) in &run.kinds {
            let limits = [
                ("first token", times.first_ms.p95, self.first(*kind)),
                ("time per token", times.token_ms.p95, self.token_ms),
            ];
            for (what, p95, limit) in limits {
                match p95 {
                    Some(p95) if p95 > limit => {
                        return Verdict::Breaks(format!(
                            "{kind}: p95 of the {what} is {p95:.0} ms, the limit {limit:.0} ms"
                        ));
                    }
                    Some(_) => {}
                    // Answers of one token have no time per token.
                    None if what == "time per token"
                        && times.token_ms.count == 0
                        && times.first_ms.count > 0 => {}
                    None => open = Some(format!("{kind}: too few requests for the p95 of the {what}")),
                }
            }
        }
        if run.kinds.is_empty() {
            open = Some("no request was counted".to_owned());
        }
        open.map_or(Verdict::Holds, Verdict::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::latency::Latency;
    use crate::bench::result::Times;

    fn run(kind: Kind, first: f64, token: f64) -> Run {
        let of = |p95| Latency { count: 1000, p95: Some(p95), ..Latency::default() };
        let times = Times { first_ms: of(first), token_ms: of(token), ..Times::default() };
        Run { kinds: [(kind, times)].into(), ..Run::default() }
    }

    #[test]
    fn a_run_holds_the_limits_of_its_kind_or_says_which_it_breaks() {
        let limits = Limits::default();
        let broken = |run: &Run| match limits.judge(run) {
            Verdict::Breaks(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(limits.judge(&run(Kind::Completion, 500.0, 60.0)), Verdict::Holds);
        assert_eq!(limits.judge(&run(Kind::Chat, 1999.0, 10.0)), Verdict::Holds);
        let why = broken(&run(Kind::Completion, 501.0, 1.0));
        assert_eq!(why, "completion: p95 of the first token is 501 ms, the limit 500 ms");
        assert!(broken(&run(Kind::Chat, 100.0, 61.0)).contains("time per token is 61 ms"));
        let failing = Run { failed: 1, first_failure: Some("429: busy".into()), ..run(Kind::Chat, 1.0, 1.0) };
        assert_eq!(broken(&failing), "1 requests were not answered (429: busy)");
        let late = Run { ended: Some("late".into()), late: true, ..run(Kind::Chat, 1.0, 1.0) };
        assert_eq!(broken(&late), "late");
    }

    #[test]
    fn what_was_not_measured_is_open_and_not_held() {
        let limits = Limits::default();
        let open = |run: &Run| matches!(limits.judge(run), Verdict::Open(_));
        assert!(open(&Run::default()));
        let mut few = run(Kind::Chat, 1.0, 1.0);
        few.kinds.values_mut().for_each(|times| times.first_ms.p95 = None);
        assert!(open(&few));
        assert!(open(&Run { ended: Some("interrupted".into()), ..run(Kind::Chat, 1.0, 1.0) }));
        let mut single = run(Kind::Chat, 1.0, 1.0);
        single.kinds.values_mut().for_each(|times| times.token_ms = Latency::default());
        assert_eq!(limits.judge(&single), Verdict::Holds, "answers of one token");
    }
}
