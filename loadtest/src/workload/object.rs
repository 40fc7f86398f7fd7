//! Writing and reading one object with its history.

use super::Site;
use crate::client::{Content, Effect, Error, Head, Payload, S3};
use crate::history::{Generation, Outcome, State};
use std::time::Duration;

/// Before a read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Name of the user metadata that carries the generation.
const GENERATION: &str = "hayloft-generation";
/// Name of the user metadata that says whose bytes a copy has: `GENERATION KEY-IN-HEX`.
const ORIGIN: &str = "hayloft-origin";

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// This state, and its bytes are right.
    State(State),
    /// Wrong bytes, or an object that claims no generation; noted as a violation.
    Wrong,
    /// The request failed; counted.
    Failed,
}

fn outcome(result: &Result<(), Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Acked,
        Err(error) if error.effect() == Effect::None => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

fn claimed(key: &str, head: &Head) -> Result<(Generation, Content), Error> {
    let generation = head.metadata.get(GENERATION).and_then(|text| text.parse().ok());
    let generation =
        generation.ok_or_else(|| Error::WrongContent(format!("object without its metadata {GENERATION}")))?;
    let Some(origin) = head.metadata.get(ORIGIN) else {
        return Ok((generation, Content::of(key, generation, head.len)));
    };
    let (first, source) = parse_origin(origin)
        .ok_or_else(|| Error::WrongContent(format!("its metadata {ORIGIN} is {origin:?}")))?;
    Ok((generation, Content::of(&source, first, head.len)))
}

fn parse_origin(text: &str) -> Option<(Generation, String)> {
    let (generation, key) = text.split_once(' ')?;
    Some((generation.parse().ok()?, String::from_utf8(hex::decode(key).ok()?).ok()?))
}

/// Reads an object, checks its bytes, and records what it was. A read whose connection broke is tried again as often
/// as the site allows, through the gateway whose turn it is.
pub async fn observe(site: &Site, key: &str) -> Observed {
    let mut retries = Retries::of(site, "get");
    let (start, mut state, result) = loop {
        let start = site.env.now();
        let mut state = State::Absent;
        let s3 = retries.client();
        let read = s3.get(key, |head| {
            let (generation, content) = claimed(key, head)?;
            state = State::Present { generation, len: head.len };
            Ok(Some(content))
        });
        let result = read.await;
        if !retries.again(&result).await {
            break (start, state, result);
        }
    };
    match result {
        Ok(_) => {}
        Err(error) if error.is_not_found() => state = State::Absent,
        Err(Error::WrongContent(what)) => {
            site.wrong_content(key, format!("{what}; the object claims to be {state:?}"));
            return Observed::Wrong;
        }
        Err(error) => {
            site.failed("get", &error);
            return Observed::Failed;
        }
    }
    site.succeeded();
    site.history.read(key, state, start, site.env.now());
    Observed::State(state)
}

/// Whether a read is tried again.
pub(super) struct Retries<'a> {
    site: &'a Site,
    operation: &'static str,
    left: u32,
    /// The gateway of the next try.
    turn: usize,
}

impl<'a> Retries<'a> {
    pub(super) fn of(site: &'a Site, operation: &'static str) -> Self {
        Self { site, operation, left: site.read_retries, turn: site.s3.take_turn() }
    }

    /// The client for the next try: each goes to another gateway.
    pub(super) fn client(&mut self) -> S3 {
        self.turn += 1;
        self.site.s3.preferring(self.turn)
    }

    /// Counts a broken connection and pauses, if another try is allowed.
    pub(super) async fn again<T>(&mut self, result: &Result<T, Error>) -> bool {
        match result {
            Err(error @ (Error::Connect { .. } | Error::Transport { .. })) if self.left > 0 => {
                self.site.failed(&format!("{} (tried again)", self.operation), error);
                self.left -= 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                true
            }
            _ => false,
        }
    }
}

/// Reads only the head and records what it claims.
pub(super) async fn observe_head(site: &Site, key: &str) {
    let mut retries = Retries::of(site, "head");
    let (start, result) = loop {
        let start = site.env.now();
        let result = retries.client().head(key).await;
        if !retries.again(&result).await {
            break (start, result);
        }
    };
    let state = match result {
        Ok(head) => match claimed(key, &head) {
            Ok((generation, _)) => State::Present { generation, len: head.len },
            Err(error) => return site.wrong_content(key, error.to_string()),
        },
        Err(error) if error.is_not_found() => State::Absent,
        Err(error) => return site.failed("head", &error),
    };
    site.succeeded();
    site.history.read(key, state, start, site.env.now());
}

impl Site {
    /// Writes a new generation of `len` bytes, in parts of `part_size` if that is given; returns its state and
    /// whether it was acknowledged. Recorded and counted.
    pub async fn write(&self, key: &str, len: u64, part_size: Option<u64>) -> (State, Outcome) {
        let generation = self.history.generation();
        let state = State::Present { generation, len };
        let content = Content::of(key, generation, len);
        let text = generation.to_string();
        let metadata = [(GENERATION, text.as_str())];
        let pending = self.history.begin(key, state, self.env.now());
        let result = match part_size {
            None => self.s3.put(key, Payload::whole(content), &metadata).await.map(|_| ()),
            Some(size) => self.s3.put_multipart(key, content, size, &metadata).await,
        };
        let outcome = outcome(&result);
        self.history.end(pending, outcome, self.env.now());
        match result {
            Ok(()) => self.succeeded(),
            Err(error) => self.failed(if part_size.is_some() { "multipart" } else { "put" }, &error),
        }
        (state, outcome)
    }

    /// Copies what `from` holds now to `to`, as a new generation with the same bytes; nothing if there is nothing to
    /// copy. Recorded and counted.
    pub async fn copy(&self, from: &str, to: &str) {
        let head = match self.s3.head(from).await {
            Ok(head) => head,
            Err(error) if error.is_not_found() => return self.succeeded(),
            Err(error) => return self.failed("copy's source", &error),
        };
        let Ok((source, _)) = claimed(from, &head) else {
            return self.wrong_content(from, "the source of a copy claims no generation".into());
        };
        let origin = head.metadata.get(ORIGIN).cloned();
        let origin = origin.unwrap_or_else(|| format!("{source} {}", hex::encode(from)));
        let generation = self.history.generation();
        let text = generation.to_string();
        let metadata = [(GENERATION, text.as_str()), (ORIGIN, origin.as_str())];
        let state = State::Present { generation, len: head.len };
        let pending = self.history.begin(to, state, self.env.now());
        let result = self.s3.copy_if(from, &head.etag, to, &metadata).await;
        let outcome = outcome(&result);
        self.history.end(pending, outcome, self.env.now());
        match result {
            // Refused: the source was written or deleted meanwhile.
            Ok(()) | Err(Error::Service { status: 404 | 412, .. }) => self.succeeded(),
            Err(error) => self.failed("copy", &error),
        }
    }

    /// Deletes an object; recorded and counted.
    pub async fn delete(&self, key: &str) -> Outcome {
        let pending = self.history.begin(key, State::Absent, self.env.now());
        let result = self.s3.delete(key).await;
        let outcome = outcome(&result);
        self.history.end(pending, outcome, self.env.now());
        match result {
            Ok(()) => self.succeeded(),
            Err(error) => self.failed("delete", &error),
        }
        outcome
    }
}
