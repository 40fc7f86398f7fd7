//! Writing and reading one object with its history.

use super::Site;
use crate::client::{Content, Effect, Error, Head, Payload};
use crate::history::{Generation, Outcome, State};

/// Name of the user metadata that carries the generation.
const GENERATION: &str = "hayloft-generation";

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
    Ok((generation, Content::of(key, generation, head.len)))
}

/// Reads an object, checks its bytes, and records what it was.
pub async fn observe(site: &Site, key: &str) -> Observed {
    let start = site.env.now();
    let mut state = State::Absent;
    let result = site
        .s3
        .get(key, |head| {
            let (generation, content) = claimed(key, head)?;
            state = State::Present { generation, len: head.len };
            Ok(Some(content))
        })
        .await;
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

/// Reads only the head and records what it claims.
pub(super) async fn observe_head(site: &Site, key: &str) {
    let start = site.env.now();
    let state = match site.s3.head(key).await {
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
