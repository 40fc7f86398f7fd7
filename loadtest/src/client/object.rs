//! The S3 operations of the client.

use super::xml::{self, DeleteResult, InitiateResult, ListPage, ListedObject};
use super::{Answer, Call, Content, Error, Payload, S3, pair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http_body_util::BodyExt as _;
use md5::{Digest as _, Md5};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const USER_METADATA: &str = "x-amz-meta-";

/// What is known of an object without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub len: u64,
    pub etag: String,
    /// `Last-Modified`, as it came.
    pub last_modified: String,
    /// User metadata: names without `x-amz-meta-`, in lower case.
    pub metadata: BTreeMap<String, String>,
}

/// A download that was read to its end.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub head: Head,
    /// Bytes received.
    pub bytes: u64,
}

impl Answer {
    fn head(&self) -> Result<Head, Error> {
        let len = self.header("content-length").and_then(|text| text.parse().ok());
        let metadata = self
            .response
            .headers()
            .iter()
            .filter_map(|(name, value)| {
                let name = name.as_str().strip_prefix(USER_METADATA)?;
                Some((name.to_owned(), value.to_str().ok()?.to_owned()))
            })
            .collect();
        Ok(Head {
            len: len.ok_or_else(|| Error::Malformed("no Content-Length".into()))?,
            etag: self.header("etag").unwrap_or_default(),
            last_modified: self.header("last-modified").unwrap_or_default(),
            metadata,
        })
    }

    /// Reads the body, comparing it with what `expected` says of the head, from `offset` on.
    async fn receive(
        mut self,
        offset: u64,
        expected: impl FnOnce(&Head) -> Result<Option<Content>, Error>,
    ) -> Result<Delivery, Error> {
        let head = self.head()?;
        let content = expected(&head)?;
        let mut bytes = 0;
        while let Some(frame) = self.response.body_mut().frame().await {
            let failed = |source| Error::Transport { endpoint: self.endpoint.url.clone(), source };
            let Ok(data) = frame.map_err(failed)?.into_data() else { continue };
            if let Some(content) = &content
                && let Some(at) = content.first_difference(offset + bytes, &data)
            {
                return Err(Error::WrongContent(format!(
                    "byte {at} differs (content of {} bytes, read from {offset}, answer of {} bytes)",
                    content.len(),
                    head.len
                )));
            }
            bytes += data.len() as u64;
        }
        if bytes != head.len {
            return Err(Error::WrongContent(format!("{bytes} bytes came, Content-Length said {}", head.len)));
        }
        self.endpoint.give_back(self.connection);
        Ok(Delivery { head, bytes })
    }
}

impl S3 {
    /// Creates the bucket; one that is there already and is ours is fine.
    pub async fn create_bucket(&self) -> Result<(), Error> {
        match self.run(Call { method: Method::PUT, ..Call::default() }).await {
            Err(Error::Service { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Whether the bucket is there and may be used.
    pub async fn head_bucket(&self) -> Result<(), Error> {
        self.run(Call { method: Method::HEAD, ..Call::default() }).await.map(|_| ())
    }

    /// Stores an object with user metadata (names without `x-amz-meta-`, in lower case); returns its ETag.
    pub async fn put(&self, key: &str, payload: Payload, metadata: &[(&str, &str)]) -> Result<String, Error> {
        self.put_counted(key, payload, metadata, None).await
    }

    /// As [`S3::put`]; `sent` counts the bytes handed to the connection so far.
    pub async fn put_counted(
        &self,
        key: &str,
        payload: Payload,
        metadata: &[(&str, &str)],
        sent: Option<Arc<AtomicU64>>,
    ) -> Result<String, Error> {
        let call = Call {
            method: Method::PUT,
            key: Some(key.into()),
            headers: metadata_headers(metadata),
            payload: Some(payload),
            sent,
            ..Call::default()
        };
        etag(&self.run(call).await?.0)
    }

    /// Reads a whole object and compares it with the content that `expected` derives from its head (`None`:
    /// only the length is checked).
    pub async fn get(
        &self,
        key: &str,
        expected: impl FnOnce(&Head) -> Result<Option<Content>, Error>,
    ) -> Result<Delivery, Error> {
        let call = Call { method: Method::GET, key: Some(key.into()), ..Call::default() };
        // The size is not known before the answer's head: the time limit is set anew for the body.
        let answer = self.limited(0, self.start(call)).await?;
        let bytes = answer.head()?.len;
        let expected = |head: &Head| {
            let content = expected(head)?;
            match content {
                Some(content) if content.len() != head.len => Err(Error::WrongContent(format!(
                    "{} bytes are there, {} were written",
                    head.len,
                    content.len()
                ))),
                other => Ok(other),
            }
        };
        self.limited(bytes, answer.receive(0, expected)).await
    }

    /// Reads the bytes `range` of an object and compares them with `content`, if given.
    pub async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
        content: Option<Content>,
    ) -> Result<Delivery, Error> {
        let wanted = range.end.saturating_sub(range.start);
        let header = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let call = Call {
            method: Method::GET,
            key: Some(key.into()),
            headers: vec![pair("range", header)],
            ..Call::default()
        };
        let expected = |head: &Head| {
            if content.is_some() && head.len != wanted {
                return Err(Error::WrongContent(format!("{} bytes for a range of {wanted}", head.len)));
            }
            Ok(content)
        };
        self.limited(wanted, async { self.start(call).await?.receive(range.start, expected).await }).await
    }

    /// An object's head.
    pub async fn head(&self, key: &str) -> Result<Head, Error> {
        let call = Call { method: Method::HEAD, key: Some(key.into()), ..Call::default() };
        self.limited(0, async {
            let answer = self.start(call).await?;
            let head = answer.head()?;
            answer.collect().await?;
            Ok(head)
        })
        .await
    }

    /// Deletes an object; one that is not there is fine, as S3 has it.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let call = Call { method: Method::DELETE, key: Some(key.into()), ..Call::default() };
        self.run(call).await.map(|_| ())
    }

    /// Deletes at most 1000 objects in one request; the first one refused becomes the error.
    pub async fn delete_objects(&self, keys: &[String]) -> Result<(), Error> {
        let xml = xml::delete_objects(keys);
        let call = Call {
            method: Method::POST,
            query: vec![pair("delete", "")],
            headers: vec![pair("content-md5", STANDARD.encode(Md5::digest(xml.as_bytes())))],
            payload: Some(Payload::Bytes(xml.into())),
            ..Call::default()
        };
        let (_, body) = self.run(call).await?;
        let result: DeleteResult = if body.is_empty() { DeleteResult::default() } else { xml::parse(&body)? };
        match result.errors.into_iter().next() {
            None => Ok(()),
            Some(error) => {
                let message = format!("{}: {}", error.key, error.message);
                Err(Error::Service { status: 500, code: error.code, message })
            }
        }
    }

    /// One page of a listing (ListObjectsV2).
    pub async fn list_page(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        token: Option<&str>,
        max_keys: u32,
    ) -> Result<ListPage, Error> {
        let mut query = vec![pair("list-type", 2), pair("prefix", prefix), pair("max-keys", max_keys)];
        query.extend(delimiter.map(|text| pair("delimiter", text)));
        query.extend(token.map(|text| pair("continuation-token", text)));
        let call = Call { method: Method::GET, query, ..Call::default() };
        xml::parse(&self.run(call).await?.1)
    }

    /// All objects under a prefix, in the order of the pages.
    pub async fn list_all(&self, prefix: &str) -> Result<Vec<ListedObject>, Error> {
        let mut objects = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.list_page(prefix, None, token.as_deref(), 1000).await?;
            objects.extend(page.contents);
            match (page.is_truncated, page.next_continuation_token) {
                (false, _) => return Ok(objects),
                (true, Some(next)) if Some(&next) != token.as_ref() => token = Some(next),
                (true, _) => return Err(Error::Malformed("truncated listing without a new token".into())),
            }
        }
    }

    /// Copies an object of this bucket; metadata goes along.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), Error> {
        let source = super::sign::encode_path(&format!("/{}/{from}", self.bucket()));
        let call = Call {
            method: Method::PUT,
            key: Some(to.into()),
            headers: vec![pair("x-amz-copy-source", source)],
            ..Call::default()
        };
        self.run(call).await.map(|_| ())
    }

    /// Copies an object of this bucket if its ETag is still `etag`, with other user metadata.
    pub async fn copy_if(
        &self,
        from: &str,
        etag: &str,
        to: &str,
        metadata: &[(&str, &str)],
    ) -> Result<(), Error> {
        let source = super::sign::encode_path(&format!("/{}/{from}", self.bucket()));
        let mut headers = metadata_headers(metadata);
        headers.push(pair("x-amz-copy-source", source));
        headers.push(pair("x-amz-copy-source-if-match", etag));
        headers.push(pair("x-amz-metadata-directive", "REPLACE"));
        let call = Call { method: Method::PUT, key: Some(to.into()), headers, ..Call::default() };
        self.run(call).await.map(|_| ())
    }

    /// Starts a multipart upload; returns its id.
    pub async fn create_upload(&self, key: &str, metadata: &[(&str, &str)]) -> Result<String, Error> {
        let call = Call {
            method: Method::POST,
            key: Some(key.into()),
            query: vec![pair("uploads", "")],
            headers: metadata_headers(metadata),
            ..Call::default()
        };
        let result: InitiateResult = xml::parse(&self.run(call).await?.1)?;
        Ok(result.upload_id)
    }

    /// Uploads one part (numbered from 1); returns its ETag.
    pub async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        payload: Payload,
    ) -> Result<String, Error> {
        let call = Call {
            method: Method::PUT,
            key: Some(key.into()),
            query: vec![pair("partNumber", number), pair("uploadId", upload)],
            payload: Some(payload),
            ..Call::default()
        };
        etag(&self.run(call).await?.0)
    }

    /// Completes an upload from part numbers and ETags, in order.
    pub async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        parts: &[(u16, String)],
    ) -> Result<(), Error> {
        let call = Call {
            method: Method::POST,
            key: Some(key.into()),
            query: vec![pair("uploadId", upload)],
            payload: Some(Payload::Bytes(xml::complete_upload(parts).into())),
            ..Call::default()
        };
        self.run(call).await.map(|_| ())
    }

    /// Gives up an upload.
    pub async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), Error> {
        let query = vec![pair("uploadId", upload)];
        let call = Call { method: Method::DELETE, key: Some(key.into()), query, ..Call::default() };
        self.run(call).await.map(|_| ())
    }

    /// Uploads `content` in parts of `part_size` bytes, one after another.
    pub async fn put_multipart(
        &self,
        key: &str,
        content: Content,
        part_size: u64,
        metadata: &[(&str, &str)],
    ) -> Result<(), Error> {
        let upload = self.create_upload(key, metadata).await?;
        let mut parts = Vec::new();
        let mut offset = 0;
        while offset < content.len() || parts.is_empty() {
            let end = (offset + part_size).min(content.len());
            let number = u16::try_from(parts.len() + 1)
                .map_err(|_| Error::Request("more parts than S3 allows".into()))?;
            let payload = Payload::Content { content, offset, end };
            parts.push((number, self.upload_part(key, &upload, number, payload).await?));
            offset = end;
        }
        self.complete_upload(key, &upload, &parts).await
    }
}

fn metadata_headers(metadata: &[(&str, &str)]) -> Vec<(String, String)> {
    metadata.iter().map(|(name, value)| pair(&format!("{USER_METADATA}{name}"), value)).collect()
}

fn etag(head: &http::Response<()>) -> Result<String, Error> {
    let value = head.headers().get("etag").and_then(|value| value.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| Error::Malformed("no ETag".into()))
}
