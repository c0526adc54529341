//! A Markdown file as passages: pieces that are short enough to be put in front of a model several at a time, each with
//! the headings it stands under.

/// Characters of a passage at most.
pub const PASSAGE: usize = 2000;
/// Characters of a title or a heading that are kept.
const HEADING: usize = 200;

/// A file, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Of the front matter, else the first heading; empty where there is neither.
    pub title: String,
    /// Of the front matter: where people read this page.
    pub url: Option<String>,
    pub passages: Vec<Passage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The headings above it, like `Install > Requirements`.
    pub heading: String,
    pub text: String,
}

impl Page {
    pub fn read(markdown: &str) -> Self {
        let (front, body) = front_matter(markdown);
        let field = |name: &str| {
            let value = front.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let value = value.trim().trim_matches(|c| c == '"' || c == '\'');
            Some(cut(value, HEADING)).filter(|value| !value.is_empty())
        };
        let mut page = Self {
            title: field("title").unwrap_or_default(),
            url: field("source_url").or_else(|| field("url")),
            passages: Vec::new(),
        };
        // Of every level of headings the one that we are under.
        let mut above: [String; 6] = Default::default();
        let mut section = String::new();
        let mut fence: Option<&str> = None;
        for line in body.lines() {
            let start = line.trim_start();
            fence = match fence {
                Some(mark) if start.starts_with(mark) => None,
                Some(mark) => Some(mark),
                None => ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark)),
            };
            let heading = heading(line).filter(|_| fence.is_none());
            let Some((level, heading)) = heading else {
                section += line;
                section.push('\n');
                continue;
            };
            page.section(&above, &section);
            section.clear();
            if page.title.is_empty() {
                page.title.clone_from(&heading);
            }
            above[level..].fill(String::new());
            above[level - 1] = heading;
        }
        page.section(&above, &section);
        page
    }

    fn section(&mut self, above: &[String], text: &str) {
        let headings: Vec<&str> = above.iter().map(String::as_str).filter(|h| !h.is_empty()).collect();
        let heading = headings.join(" > ");
        let passages = split(text.trim()).into_iter().map(|text| Passage { heading: heading.clone(), text });
        self.passages.extend(passages);
    }
}

/// The front matter between two lines of dashes, and the rest.
fn front_matter(markdown: &str) -> (&str, &str) {
    let text = markdown.trim_start_matches('\u{feff}');
    let Some(rest) = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n")) else {
        return ("", text);
    };
    match rest.find("\n---") {
        Some(end) => {
            let after = &rest[end + 4..];
            (&rest[..end], after.find('\n').map_or("", |line| &after[line..]))
        }
        None => ("", text),
    }
}

/// The level and the text of a heading.
fn heading(line: &str) -> Option<(usize, String)> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    let heading = (1..=6).contains(&level) && text.starts_with([' ', '\t']);
    heading.then(|| (level, cut(text.trim().trim_end_matches('#').trim_end(), HEADING)))
}

/// A text in pieces of [`PASSAGE`] characters at most: between paragraphs where possible, else between lines, else
/// anywhere.
fn split(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.char_indices().nth(PASSAGE).map_or(rest.len(), |(at, _)| at);
        let whole = &rest[..end];
        let end = match end == rest.len() {
            true => end,
            false => {
                let mark = ["\n\n", "\n", " "].into_iter().filter_map(|mark| whole.rfind(mark));
                mark.into_iter().find(|at| *at > 0).unwrap_or(end)
            }
        };
        let (piece, after) = rest.split_at(end);
        pieces.push(piece.trim_end().to_owned());
        rest = after.trim_start();
    }
    pieces
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(heading: &str, text: &str) -> Passage {
        Passage { heading: heading.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn passages_stand_under_their_headings_and_code_holds_none() {
        let page = Page::read(
            "---\ntitle: \"Runners\"\nurl: https://docs.example.com/runners\n---\n\nIntro.\n\n# Install\n\nText.\n\n```shell\n# \
             not a heading\n```\n\n## Needs ##\n\nMuch.\n\n#hashtag\n\n# Use\n\nSo.\n",
        );
        assert_eq!(
            (page.title.as_str(), page.url.as_deref()),
            ("Runners", Some("https://docs.example.com/runners"))
        );
        assert_eq!(
            page.passages,
            [
                passage("", "Intro."),
                passage("Install", "Text.\n\n```shell\n# not a heading\n```"),
                passage("Install > Needs", "Much.\n\n#hashtag"),
                passage("Use", "So."),
            ]
        );
        assert_eq!(Page::read("# First\n\nx").title, "First");
        assert_eq!(Page::read("---\nno end of it").passages, [passage("", "---\nno end of it")]);
        assert_eq!(Page::read("").passages, []);
    }

    #[test]
    fn long_sections_are_cut_between_paragraphs_lines_or_words() {
        for (unit, separator) in [("é paragraph", "\n\n"), ("a line", "\n"), ("word", " "), ("x", "")] {
            let text = vec![unit; 3 * PASSAGE].join(separator);
            let pieces = split(&text);
            assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.chars().count() <= PASSAGE));
            assert!(pieces.iter().all(|piece| piece.starts_with(unit) && piece.ends_with(unit)));
            assert_eq!(pieces.join(separator), text);
        }
    }
}
