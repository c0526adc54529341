//! Stop strings in a stream of text (step 10 in the life of a request).
//!
//! Text that may turn out to be the beginning of a stop string is held back, and nothing more than that. The choice
//! ends at the stop string that is complete first, whatever pieces the text came in.

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Text that can be sent.
    Text(String),
    /// The last text before the stop string (or with it, when asked for), and the stop string.
    Stopped { text: String, stop: String },
}

/// The stop strings of one choice and the text held back for them.
#[derive(Clone, Debug)]
pub struct Stops {
    stops: std::sync::Arc<[String]>,
    include: bool,
    held: String,
}

impl Stops {
    /// `include` leaves the stop string in the text.
    pub fn new(stops: std::sync::Arc<[String]>, include: bool) -> Self {
        Self { stops, include, held: String::new() }
    }

    pub fn push(&mut self, piece: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Text(piece.to_owned());
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop)))
            .min_by_key(|(end, start, _)| (*end, *start));
        if let Some((end, start, stop)) = first {
            let stop = stop.clone();
            self.held.truncate(if self.include { end } else { start });
            return Scan::Stopped { text: std::mem::take(&mut self.held), stop };
        }
        let safe =
            self.held.len() - self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(safe);
        Scan::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The end of the text: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.as_bytes().ends_with(&stop.as_bytes()[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(list: &[&str], include: bool) -> Stops {
        Stops::new(list.iter().map(|s| s.to_string()).collect(), include)
    }

    fn run(mut stops: Stops, pieces: &[String]) -> (String, Option<String>) {
        let mut all = String::new();
        for piece in pieces {
            match stops.push(piece) {
                Scan::Text(text) => all += &text,
                Scan::Stopped { text, stop } => return (all + &text, Some(stop)),
            }
        }
        (all + &stops.finish(), None)
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut s = stops(&["\n\n", "END"], false);
        assert_eq!(s.push("a\n"), Scan::Text("a".into()));
        assert_eq!(s.push("b E"), Scan::Text("\nb ".into()));
        assert_eq!(s.push("N"), Scan::Text("".into()));
        assert_eq!(s.push("x"), Scan::Text("ENx".into()));
        assert_eq!(s.finish(), "");
    }

    #[test]
    fn a_stop_string_over_three_pieces_ends_the_text_before_it() {
        let pieces = ["one E".to_string(), "N".into(), "D two".into()];
        assert_eq!(run(stops(&["END"], false), &pieces), ("one ".into(), Some("END".into())));
        assert_eq!(run(stops(&["END"], true), &pieces), ("one END".into(), Some("END".into())));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        assert_eq!(run(stops(&["abcd", "bc"], false), &["xabcd".into()]), ("xa".into(), Some("bc".into())));
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_text_do_not_matter(
            text in "[abé\n]{0,40}",
            list in prop::collection::vec("[abé\n]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..8, 0..40),
            include: bool,
        ) {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let whole = run(stops(&list, include), std::slice::from_ref(&text));
            let chars: Vec<char> = text.chars().collect();
            let (mut pieces, mut at) = (Vec::new(), 0);
            for cut in cuts {
                let end = (at + cut).min(chars.len());
                pieces.push(chars[at..end].iter().collect());
                at = end;
            }
            pieces.push(chars[at..].iter().collect());
            prop_assert_eq!(run(stops(&list, include), &pieces), whole);
        }
    }
}
