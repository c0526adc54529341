//! The bytes of a checkpoint's files, from the hub into a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::ApiRepo;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{TlsConfig, TlsProvider};

use super::{RETRIES, failed, token};
use crate::cli::CliError;
use crate::cli::steps::Steps;
use crate::store::{self, StoreError, Watch};

/// Brings files of one commit into a directory. Nothing that the hub answers becomes a part of a path.
pub struct Files {
    agent: Agent,
    repo: ApiRepo,
    token: Option<String>,
    /// Where they come to lie.
    pub directory: PathBuf,
    endpoint: String,
    id: String,
}

impl Files {
    pub fn new(repo: ApiRepo, directory: PathBuf, endpoint: String, id: String) -> Result<Self, CliError> {
        fs::create_dir_all(&directory).map_err(StoreError::io(&directory, "it cannot be made"))?;
        // As the hub's own client: the files themselves often lie with somebody else, who is not told the token.
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .build()
            .new_agent();
        Ok(Self { agent, repo, token: token(), directory, endpoint, id })
    }

    /// A file of a plain name, unless it is there. What broke off goes on where it ended.
    pub fn get(&self, name: &str, steps: &mut Steps) -> Result<(), CliError> {
        assert!(store::flat(name), "bug: {name:?} was wanted and is no file's name");
        let (path, part) = (self.directory.join(name), self.directory.join(format!(".{name}.part")));
        if path.is_file() {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            match self.go_on(name, &part, steps) {
                Ok(()) => break,
                Err(Broken::Disk(e)) => return Err(StoreError::io(&part, "it cannot be written")(e).into()),
                Err(Broken::Hub { text, again }) if !again || tries == RETRIES => {
                    return Err(failed(&self.id, &self.endpoint, &text));
                }
                Err(Broken::Hub { .. }) => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(300) * tries as u32);
                }
            }
        }
        steps.end();
        Ok(fs::rename(&part, &path).map_err(StoreError::io(&path, "it cannot be renamed"))?)
    }

    /// The rest of a file, to the end of what is there of it.
    fn go_on(&self, name: &str, part: &Path, steps: &mut Steps) -> Result<(), Broken> {
        let hub = |text: String| Broken::Hub { text, again: true };
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(Broken::Disk)?;
        let mut have = file.metadata().map_err(Broken::Disk)?.len();
        let mut request = self.agent.get(self.repo.url(name));
        if have > 0 {
            request = request.header("range", format!("bytes={have}-"));
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = match request.call() {
            // There is no more, or what is there is not of this file: from the beginning.
            Err(ureq::Error::StatusCode(416)) if have > 0 => {
                file.set_len(0).map_err(Broken::Disk)?;
                return Err(hub("the file is shorter than what there is of it".to_owned()));
            }
            Err(e) => {
                let again = !matches!(e, ureq::Error::StatusCode(400..=499));
                return Err(Broken::Hub { text: e.to_string(), again });
            }
            Ok(answer) => answer,
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        // `bytes FROM-TO/WHOLE`, or all of it, though the rest was asked for.
        let range = header("content-range").and_then(|range| {
            let (range, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
            Some((number(range.split_once('-')?.0)?, number(whole)?))
        });
        let whole = match range {
            Some((from, whole)) if from == have => Some(whole),
            Some(_) => return Err(hub("another part of the file came than was asked for".to_owned())),
            None => {
                file.set_len(0).map_err(Broken::Disk)?;
                have = 0;
                header("content-length").and_then(number)
            }
        };
        steps.begin(name, whole);
        let most = whole.map_or(u64::MAX, |whole| whole.saturating_sub(have));
        let mut body = answer.into_body().into_reader().take(most);
        have = append(&mut body, &mut file, have, steps)?;
        match whole.is_none_or(|whole| whole == have) {
            true => Ok(()),
            false => Err(hub(format!("it ended after {have} bytes"))),
        }
    }
}

/// Why there is no more of a file.
enum Broken {
    Disk(io::Error),
    Hub { text: String, again: bool },
}

/// How many bytes the file has then.
fn append(from: &mut impl Read, to: &mut File, mut have: u64, steps: &mut Steps) -> Result<u64, Broken> {
    let mut piece = vec![0; 1 << 18];
    loop {
        let read = from.read(&mut piece).map_err(|e| Broken::Hub { text: e.to_string(), again: true })?;
        if read == 0 {
            return Ok(have);
        }
        to.write_all(&piece[..read]).map_err(Broken::Disk)?;
        have += read as u64;
        steps.at(have);
    }
}
