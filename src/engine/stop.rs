//! When a choice ends (step 9 in the life of a request): stop tokens, `max_tokens`, the end of the context. Stop
//! strings are the text layer's; it cancels the choice.

use super::request::{Finish, Request};

/// Whether `token`, the last of `length` tokens of prompt and output, ends the choice.
pub(crate) fn verdict(request: &Request, token: u32, length: u32, limit: u32) -> Option<Finish> {
    if request.stop_tokens.contains(&token) {
        Some(Finish::Stop)
    } else if length >= limit {
        Some(Finish::Length)
    } else {
        None
    }
}

/// Takes the stop tokens out of a mask while a choice has fewer than `min_tokens`. A mask that allows nothing else is
/// left alone: a grammar that has ended wins.
pub(crate) fn bar(request: &Request, outputs: u32, allowed: &mut [u32]) {
    if !barred(request, outputs) {
        return;
    }
    let others = |word: usize, bits: u32| {
        let stop = |token: &&u32| **token as usize / 32 == word;
        request.stop_tokens.iter().filter(stop).fold(bits, |bits, token| bits & !(1 << (token % 32)))
    };
    if (0..).zip(&*allowed).any(|(word, bits)| others(word, *bits) != 0) {
        for (word, bits) in allowed.iter_mut().enumerate() {
            *bits = others(word, *bits);
        }
    }
}

/// Whether a choice with this many tokens of output may not stop yet.
pub(crate) fn barred(request: &Request, outputs: u32) -> bool {
    outputs < request.min_tokens && !request.stop_tokens.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request { stop_tokens: [3, 40].into(), min_tokens: 2, ..Request::new([1]) }
    }

    #[test]
    fn a_stop_token_ends_a_choice_as_stopped_even_at_its_last_place() {
        assert_eq!(verdict(&request(), 40, 5, 9), Some(Finish::Stop));
        assert_eq!(verdict(&request(), 3, 9, 9), Some(Finish::Stop));
        assert_eq!(verdict(&request(), 4, 9, 9), Some(Finish::Length));
        assert_eq!(verdict(&request(), 4, 8, 9), None);
    }

    #[test]
    fn stop_tokens_are_barred_until_min_tokens_unless_a_grammar_allows_nothing_else() {
        let mut allowed = [!0, !0];
        bar(&request(), 1, &mut allowed);
        assert_eq!(allowed, [!(1 << 3), !(1 << 8)]);
        let mut ended = [1 << 3, 0];
        bar(&request(), 1, &mut ended);
        assert_eq!(ended, [1 << 3, 0]);
        let mut late = [!0, !0];
        bar(&request(), 2, &mut late);
        assert_eq!(late, [!0, !0]);
    }
}
