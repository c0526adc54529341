//! An upstream's stream of events as an [`Answer`]. Dropping the answer closes the connection, and with it the
//! upstream's work.

use futures::stream;
use serde_json::Value;

use super::events::Events;
use super::line::Line;
use super::request::Request;
use crate::served::ask::{Answer, End, Failure, Piece, Usage};
use crate::text::stop::{Scan, Stops};

/// The answer on a line whose headers said 200.
pub fn read(line: Line, request: Request) -> Result<Answer, Failure> {
    if !line.streams() {
        return Err(line.broken(format!("sent {:?} instead of a stream of events", line.content_type())));
    }
    let reading = Reading {
        line,
        events: Events::default(),
        stops: Stops::new(request.stops.into(), false),
        echo: Echo::new(request.echo),
        usage: Usage { input: request.input, output: 0 },
        counted: false,
        end: None,
        done: false,
        said_all: false,
    };
    Ok(Answer::new(stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(text)) => Some((Ok(Piece::Text(text)), Some(reading))),
            Ok(None) => {
                let end = Piece::End { end: reading.end.unwrap_or(End::Stop), usage: reading.usage };
                // At a stop string of ours the upstream may be at work still: its connection is closed instead.
                if reading.said_all {
                    reading.line.ended();
                }
                Some((Ok(end), None))
            }
            Err(failure) => Some((Err(failure), None)),
        }
    })))
}

struct Reading {
    line: Line,
    events: Events,
    stops: Stops,
    echo: Echo,
    usage: Usage,
    /// The upstream has counted itself.
    counted: bool,
    end: Option<End>,
    done: bool,
    /// The upstream's last word has come.
    said_all: bool,
}

impl Reading {
    /// The next text; `None` at the end.
    async fn next(&mut self) -> Result<Option<String>, Failure> {
        while !self.done {
            let text = match self.events.next() {
                Some(event) => self.event(&event)?,
                None => {
                    self.more().await?;
                    continue;
                }
            };
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        let rest = self.echo.finish();
        let rest = self.stop(&rest) + &self.stops.finish();
        Ok(Some(rest).filter(|rest| !rest.is_empty()))
    }

    async fn more(&mut self) -> Result<(), Failure> {
        match self.line.piece().await? {
            Some(bytes) => self.events.push(&bytes).map_err(|e| self.line.broken(format!("sent {e}"))),
            // Some end their streams without saying so; a reason to end is enough.
            None if self.end.is_some() => {
                self.done = true;
                Ok(())
            }
            None => Err(self.line.broken("broke off in the middle of an answer".to_owned())),
        }
    }

    fn event(&mut self, event: &str) -> Result<String, Failure> {
        if event.trim() == "[DONE]" {
            (self.done, self.said_all) = (true, true);
            return Ok(String::new());
        }
        let event: Value = serde_json::from_str(event)
            .map_err(|e| self.line.broken(format!("sent an event that is not JSON ({:?})", e.classify())))?;
        if !event["error"].is_null() || event["object"] == "error" {
            return Err(self.line.told(&event));
        }
        let count = |name: &str| event["usage"][name].as_u64().and_then(|n| u32::try_from(n).ok());
        if let (Some(input), Some(output)) = (count("prompt_tokens"), count("completion_tokens")) {
            self.usage = Usage { input, output };
            self.counted = true;
        }
        let choice = &event["choices"][0];
        let text =
            choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).unwrap_or_default();
        if !self.counted && !text.is_empty() {
            self.usage.output += 1;
        }
        let text = self.echo.push(text);
        let text = self.stop(&text);
        match choice["finish_reason"].as_str() {
            Some("length") if self.end.is_none() => self.end = Some(End::Length),
            Some(_) if self.end.is_none() => self.end = Some(End::Stop),
            _ => {}
        }
        Ok(text)
    }

    /// The text up to a stop string, behind which nothing more is read.
    fn stop(&mut self, text: &str) -> String {
        match self.stops.push(text) {
            Scan::Text(text) => text,
            Scan::Stopped { text, .. } => {
                self.end = Some(End::Stop);
                self.done = true;
                text
            }
        }
    }
}

/// Takes a beginning off an answer that repeats it.
struct Echo {
    begun: String,
    held: String,
}

impl Echo {
    fn new(begun: String) -> Self {
        Self { begun: begun.trim().to_owned(), held: String::new() }
    }

    fn push(&mut self, text: &str) -> String {
        if self.begun.is_empty() {
            return text.to_owned();
        }
        self.held += text;
        let found = self.held.trim_start();
        if let Some(rest) = found.strip_prefix(&self.begun) {
            let rest = rest.to_owned();
            self.begun.clear();
            self.held.clear();
            return rest;
        }
        match self.begun.starts_with(found) {
            true => String::new(),
            false => self.finish(),
        }
    }

    fn finish(&mut self) -> String {
        self.begun.clear();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_beginning_is_taken_off_and_nothing_else() {
        for (begun, answer, rest) in [
            ("Thought:", "Thought: yes", " yes"),
            ("Thought:", "\n Thought: yes", " yes"),
            ("Thought:", " Though", " Though"),
            ("Thought:", "Thus", "Thus"),
            ("", " Thus", " Thus"),
            ("<new_code>\n", "<new_code>\nx", "\nx"),
        ] {
            let whole = Echo::new(begun.to_owned());
            for size in 1..=answer.len() {
                let mut echo = Echo { begun: whole.begun.clone(), held: String::new() };
                let pieces: Vec<&str> =
                    answer.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
                let mut said: String = pieces.iter().map(|piece| echo.push(piece)).collect();
                said += &echo.finish();
                assert_eq!(said, rest, "{answer:?} in pieces of {size}");
            }
        }
    }
}
