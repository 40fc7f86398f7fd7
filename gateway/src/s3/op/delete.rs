//! DeleteObject and DeleteObjects.

use super::{Context, empty, xml_response};
use crate::domain::{DeleteOutcome, Right};
use crate::s3::S3Response;
use crate::s3::error::{S3Error, S3Result};
use crate::s3::xml::{self, XmlWriter};
use http::StatusCode;

/// Longest body of DeleteObjects: 1,000 keys, each byte of which may be a reference such as `&#x10;`.
const MAX_BODY: usize = 8 << 20;

pub(super) async fn one(cx: Context<'_>) -> S3Result<S3Response> {
    cx.request.check_version()?;
    let bucket = cx.bucket(Right::Write).await?;
    cx.gateway.delete(&bucket, cx.object_key()?).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn many(mut cx: Context<'_>) -> S3Result<S3Response> {
    let bucket = cx.bucket(Right::Write).await?;
    let body = cx.request.read_xml(MAX_BODY, true).await?;
    let delete = xml::parse_delete(&body)?;
    drop(body);
    let outcomes = cx.gateway.delete_many(&bucket, delete.keys).await;
    let mut xml = XmlWriter::with_root("DeleteResult");
    for outcome in outcomes {
        write_outcome(&mut xml, outcome, delete.quiet);
    }
    xml.close("DeleteResult");
    Ok(xml_response(xml))
}

fn write_outcome(xml: &mut XmlWriter, outcome: DeleteOutcome, quiet: bool) {
    match outcome.result {
        Ok(()) if quiet => {}
        Ok(()) => {
            xml.open("Deleted").text("Key", &outcome.key).close("Deleted");
        }
        Err(error) => {
            let error = S3Error::from(error);
            xml.open("Error")
                .text("Key", &outcome.key)
                .text("Code", error.code.name())
                .text("Message", &error.message)
                .close("Error");
        }
    }
}
