//! The documentation in memory: its passages and a full-text index over them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, BoostQuery, Occur, Query, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, IndexReader, ReloadPolicy, TantivyDocument, Term};

use super::markdown::Page;

/// What is read at most; GitLab's own documentation has about 3,000 files and 40 MB.
const FILES: usize = 20_000;
const BYTES: u64 = 256 << 20;
const FILE_BYTES: u64 = 2 << 20;
const DEPTH: usize = 16;

/// Bytes of a question that are looked at, and different words of it that are looked for. A question may have 400,000
/// characters; the words that matter stand at its beginning.
const QUESTION: usize = 16 << 10;
const WORDS: usize = 48;
/// Words of every question, as the index knows them: they would find every passage.
const COMMON: &str = "a about all am an and ani ar as at be but by can could did do doe for from get had has have how i if in \
                      into is it just let me my need no not of on or our out should so some tell than that the their \
                      them then there these they this to up us use want was we what when where which who whi will with \
                      would you your";
/// A word in a heading says more than one in the text.
const HEADING_BOOST: f32 = 2.0;
/// Bytes that the index may take while it is made.
const BUDGET: usize = 64 << 20;
const ANALYZER: &str = "en_stem";

/// A passage that was found, or could be.
#[derive(Clone, Debug)]
pub struct Found {
    /// Lower-case hex digits: GitLab looks for them in what the model cites.
    pub id: String,
    pub content: String,
    /// Relative to the directory.
    pub file: String,
    pub title: String,
    pub url: Option<String>,
}

pub struct Library {
    found: Vec<Found>,
    index: Index,
    reader: IndexReader,
    heading: Field,
    text: Field,
}

/// Why the documentation cannot be searched.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("{} cannot be read: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    #[error("{} is no directory", path.display())]
    NoDirectory { path: PathBuf },
    #[error("the index cannot be made: {0}")]
    Index(#[from] tantivy::TantivyError),
}

impl Library {
    /// Reads every Markdown file below a directory. Takes seconds where there are thousands.
    pub fn read(directory: &Path) -> Result<Self, LibraryError> {
        let mut found = Vec::new();
        let mut schema = Schema::builder();
        let indexed = TextFieldIndexing::default()
            .set_tokenizer(ANALYZER)
            .set_index_option(IndexRecordOption::WithFreqs);
        let options = TextOptions::default().set_indexing_options(indexed);
        let heading = schema.add_text_field("heading", options.clone());
        let text = schema.add_text_field("text", options);
        let place = schema.add_u64_field("place", FAST);
        let index = Index::create_in_ram(schema.build());
        let mut writer = index.writer_with_num_threads(1, BUDGET)?;
        for file in files(directory)? {
            let Ok(bytes) = fs::read(&file) else {
                tracing::warn!(file = %file.display(), "a file of the documentation cannot be read");
                continue;
            };
            let name = file.strip_prefix(directory).unwrap_or(&file).to_string_lossy().into_owned();
            let page = Page::read(&String::from_utf8_lossy(&bytes));
            for (i, passage) in page.passages.into_iter().enumerate() {
                let mut document = TantivyDocument::default();
                document.add_text(heading, format!("{} {}", page.title, passage.heading));
                document.add_text(text, &passage.text);
                document.add_u64(place, found.len() as u64);
                writer.add_document(document)?;
                found.push(Found {
                    id: id(&name, i),
                    content: match passage.heading.is_empty() {
                        true => passage.text,
                        false => format!("{}\n\n{}", passage.heading, passage.text),
                    },
                    file: name.clone(),
                    title: page.title.clone(),
                    url: page.url.clone(),
                });
            }
        }
        writer.commit()?;
        writer.wait_merging_threads()?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { found, index, reader, heading, text })
    }

    pub fn passages(&self) -> usize {
        self.found.len()
    }

    /// The passages that answer a question best, the best one first.
    pub fn search(&self, question: &str, count: usize) -> Result<Vec<&Found>, LibraryError> {
        let words = self.words(question);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for word in &words {
            let term = |field| {
                Box::new(TermQuery::new(Term::from_field_text(field, word), IndexRecordOption::WithFreqs))
            };
            clauses.push((Occur::Should, term(self.text)));
            clauses.push((Occur::Should, Box::new(BoostQuery::new(term(self.heading), HEADING_BOOST))));
        }
        let searcher = self.reader.searcher();
        let best = TopDocs::with_limit(count).order_by_score();
        let mut places = Vec::new();
        for (_, address) in searcher.search(&BooleanQuery::new(clauses), &best)? {
            let column = searcher.segment_reader(address.segment_ord).fast_fields().u64("place")?;
            places.extend(column.first(address.doc_id));
        }
        Ok(places.into_iter().filter_map(|place| self.found.get(place as usize)).collect())
    }

    /// The first different words of a question, as the index knows them.
    fn words(&self, question: &str) -> BTreeSet<String> {
        let mut end = question.len().min(QUESTION);
        while !question.is_char_boundary(end) {
            end -= 1;
        }
        let mut analyzer = self.index.tokenizers().get(ANALYZER).expect("bug: it comes with the index");
        let mut tokens = analyzer.token_stream(&question[..end]);
        let mut words = BTreeSet::new();
        while words.len() < WORDS && tokens.advance() {
            let word = &tokens.token().text;
            if !COMMON.split(' ').any(|common| common == word) {
                words.insert(word.clone());
            }
        }
        words
    }
}

/// The same for the same passage of the same file, whatever else is there.
fn id(file: &str, passage: usize) -> String {
    let hash = digest(&SHA256, format!("{file}\n{passage}").as_bytes());
    hash.as_ref()[..16].iter().map(|b| format!("{b:02x}")).collect()
}

/// The Markdown files below a directory, in the order of their names. Links are not followed: what lies elsewhere is
/// not documentation.
fn files(directory: &Path) -> Result<Vec<PathBuf>, LibraryError> {
    if !directory.is_dir() {
        return Err(LibraryError::NoDirectory { path: directory.to_owned() });
    }
    let mut files = Vec::new();
    let mut bytes = 0;
    let mut open = vec![(directory.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let failed = |error| LibraryError::Directory { path: path.clone(), error };
        let mut entries =
            fs::read_dir(&path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in entries {
            let (Ok(kind), Ok(about)) = (entry.file_type(), entry.metadata()) else { continue };
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let path = entry.path();
            if kind.is_dir() && !hidden && depth < DEPTH {
                open.push((path, depth + 1));
            } else if kind.is_file() && markdown(&path) && about.len() <= FILE_BYTES {
                bytes += about.len();
                if files.len() == FILES || bytes > BYTES {
                    tracing::warn!(
                        directory = %directory.display(),
                        "the documentation is larger than {FILES} files or {BYTES} bytes; the rest of it is not searched"
                    );
                    files.sort();
                    return Ok(files);
                }
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn markdown(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("md") || e.eq_ignore_ascii_case("markdown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(files: &[(&str, &str)]) -> (tempfile::TempDir, Library) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let library = Library::read(directory.path()).unwrap();
        (directory, library)
    }

    fn names(library: &Library, question: &str) -> Vec<String> {
        library.search(question, 4).unwrap().iter().map(|found| found.file.clone()).collect()
    }

    #[test]
    fn words_are_found_in_any_of_their_forms_and_headings_count_more() {
        let (_directory, library) = library(&[
            ("ci/runners.md", "# Runners\n\nInstalling a runner on a machine of your own."),
            ("user/issues.md", "# Issues\n\nAn issue is a task. A runner is mentioned once."),
            ("user/empty.md", ""),
            ("user/other.txt", "runners runners"),
        ]);
        assert_eq!(names(&library, "How do I install runners?"), ["ci/runners.md", "user/issues.md"]);
        assert_eq!(names(&library, "issues"), ["user/issues.md"]);
        assert_eq!(names(&library, "what is it, and why are they there?"), [""; 0]);
        assert_eq!(library.words("this was the doing of any who has us"), BTreeSet::new());
        for none in ["", "?!", "xylophone", "title:runners AND (", "\"", &"?".repeat(400_000)] {
            assert!(names(&library, none).len() <= 2, "{none}");
        }
        let long = format!("runner {}", "and so on ".repeat(40_000));
        assert_eq!(names(&library, &long)[0], "ci/runners.md");
        let ids: BTreeSet<&String> = library.found.iter().map(|found| &found.id).collect();
        assert_eq!((ids.len(), library.passages()), (2, 2));
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn nothing_outside_the_directory_is_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.md"), "secret").unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret.md"), directory.path().join("a.md")).unwrap();
        std::os::unix::fs::symlink(directory.path(), directory.path().join("round")).unwrap();
        fs::create_dir(directory.path().join(".git")).unwrap();
        fs::write(directory.path().join(".git/secret.md"), "secret").unwrap();
        fs::write(directory.path().join("b.md"), vec![b'x'; FILE_BYTES as usize + 1]).unwrap();
        assert_eq!(Library::read(directory.path()).unwrap().passages(), 0);
        let error = Library::read(&directory.path().join("nowhere")).err().unwrap().to_string();
        assert!(error.ends_with("nowhere is no directory"), "{error}");
    }
}
