//! Reading server-sent events, as an upstream sends its answer: bytes come in any pieces, lines end with LF, CRLF or
//! CR, comments keep the connection alive, and the data of an event may stand in several lines.

use std::collections::VecDeque;

/// Bytes of one event at most. A token with its log probabilities has about a thousand.
const EVENT: usize = 1 << 20;

/// An event that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {EVENT} bytes")]
pub struct TooLong;

/// The events whose bytes have come so far.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    /// The data lines of the event that has begun.
    data: Option<Vec<u8>>,
    /// The last byte was a CR: an LF after it belongs to the same line end.
    returned: bool,
    whole: VecDeque<String>,
}

impl Events {
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            let second = std::mem::replace(&mut self.returned, *byte == b'\r') && *byte == b'\n';
            match byte {
                b'\n' if second => {}
                b'\n' | b'\r' => self.end_line(),
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// The data of the next event that is whole.
    pub fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = self.data.take().map(|data| String::from_utf8_lossy(&data).into_owned());
            self.whole.extend(data);
            return;
        }
        // Anything else is a comment, or a field that means nothing here.
        if let Some(value) = line.strip_prefix(b"data:").or_else(|| (line == b"data").then_some(b"")) {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut read = Vec::new();
        for piece in pieces {
            events.push(piece).unwrap();
            read.extend(std::iter::from_fn(|| events.next()));
        }
        read
    }

    #[test]
    fn events_are_the_same_wherever_their_bytes_are_cut() {
        let text = ": hello\n\ndata: {\"a\": \"é🦀\"}\r\n\r\nevent: x\rid: 7\rdata:one\rdata: two\rdata\r\r\
                    data: \n\ndata: [DONE]\n\n"
            .as_bytes();
        let whole = ["{\"a\": \"é🦀\"}", "one\ntwo\n", "", "[DONE]"];
        for size in 1..=text.len() {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(read(&pieces), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn what_has_not_ended_is_no_event_and_what_never_ends_is_an_error() {
        let mut events = Events::default();
        events.push(b"data: a\n").unwrap();
        assert_eq!(events.next(), None);
        events.push(b"\n").unwrap();
        assert_eq!(events.next().as_deref(), Some("a"));
        assert_eq!(Events::default().push(&vec![b'x'; EVENT + 1]), Err(TooLong));
        let lines = "data: x\n".repeat(EVENT);
        assert_eq!(Events::default().push(lines.as_bytes()), Err(TooLong));
        assert!(read(&[b"<html>\n\n<body>\n\n"]).is_empty());
        assert_eq!(read(&[b"data: \xff\n\n"]), ["\u{fffd}"]);
    }
}
