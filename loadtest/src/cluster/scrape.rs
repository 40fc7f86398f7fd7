//! Reads what daemons tell of themselves on their admin port.

use anyhow::{Context as _, Result, ensure};
use hayloft_common::env::Env;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The series of a daemon: `name{labels}` as it is written, and its value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(BTreeMap<String, f64>);

impl Series {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// The sum of the series called `name`, whatever their labels; none if there is no such series.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let ours = |series: &str| {
            series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        let mut values = self.0.iter().filter(|(series, _)| ours(series)).map(|(_, value)| *value).peekable();
        values.peek()?;
        Some(values.sum())
    }
}

/// The metrics of the daemon whose admin port is `addr`.
pub async fn scrape(env: &Env, addr: &str) -> Result<Series> {
    let text = tokio::time::timeout(PATIENCE, fetch(env, addr, "/metrics"))
        .await
        .with_context(|| format!("no metrics from {addr} within {PATIENCE:?}"))??;
    Ok(Series::parse(&text))
}

async fn fetch(env: &Env, addr: &str, path: &str) -> Result<String> {
    let mut stream = env.net.dial(addr).await.with_context(|| format!("cannot connect to {addr}"))?;
    // Version 1.0: the answer comes in one piece and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{addr}{path} answers: {status}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_over_their_labels() {
        let text = "# HELP a_b x\na_b{t=\"1\"} 2\na_b{t=\"2\"} 3.5\na_bc 7\nd 1e3\n";
        let series = Series::parse(text);
        assert_eq!(series.sum("a_b"), Some(5.5));
        assert_eq!((series.sum("d"), series.sum("e")), (Some(1000.0), None));
    }
}
