//! The XML bodies of requests: DeleteObjects, CompleteMultipartUpload, CreateBucket. Strict: an element
//! that asks for something we don't know is an error, never dropped.

use super::reader::{Element, parse};
use crate::s3::checksum;
use crate::s3::error::{S3Error, S3Result};
use hayloft_common::limits::{MAX_LIST_PAGE, MAX_PARTS};
use hayloft_common::schema::ChecksumAlgorithm;

/// DeleteObjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRequest {
    pub keys: Vec<String>,
    /// Only failures are answered.
    pub quiet: bool,
}

/// One part of CompleteMultipartUpload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedPart {
    pub number: u32,
    /// Without quotes.
    pub etag: String,
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

fn root(bytes: &[u8], name: &str) -> S3Result<Element> {
    let root = parse(bytes).map_err(S3Error::malformed_xml)?;
    if root.name == name {
        return Ok(root);
    }
    Err(S3Error::malformed_xml(format!("the root element is not {name}")))
}

/// Parses the body of DeleteObjects.
pub fn parse_delete(bytes: &[u8]) -> S3Result<DeleteRequest> {
    let root = root(bytes, "Delete")?;
    if let Some(name) = root.unknown_child(&["Object", "Quiet"]) {
        return Err(S3Error::malformed_xml(format!("unknown element {name}")));
    }
    let has_quiet = root.children.iter().any(|c| c.name == "Quiet");
    let quiet = match root.child_text("Quiet").map(str::trim) {
        Some("true") => true,
        Some("false" | "") => false,
        None if !has_quiet => false,
        _ => return Err(S3Error::malformed_xml("Quiet is neither true nor false")),
    };
    let mut keys = Vec::new();
    for object in root.children.iter().filter(|c| c.name == "Object") {
        match object.unknown_child(&["Key", "VersionId"]) {
            Some(name @ ("ETag" | "LastModifiedTime" | "Size")) => {
                return Err(S3Error::not_implemented(format_args!("conditional deletes ({name})")));
            }
            Some(name) => return Err(S3Error::malformed_xml(format!("unknown element {name}"))),
            None => {}
        }
        if object.children.iter().any(|c| c.name == "VersionId")
            && object.child_text("VersionId") != Some("null")
        {
            return Err(S3Error::not_implemented("version ids other than null"));
        }
        let key =
            object.child_text("Key").ok_or_else(|| S3Error::malformed_xml("an Object has no single Key"))?;
        keys.push(key.to_owned());
    }
    if keys.is_empty() || keys.len() > MAX_LIST_PAGE {
        return Err(S3Error::malformed_xml("it must name 1 to 1000 objects"));
    }
    Ok(DeleteRequest { keys, quiet })
}

/// Parses the body of CompleteMultipartUpload.
pub fn parse_complete(bytes: &[u8]) -> S3Result<Vec<CompletedPart>> {
    let root = root(bytes, "CompleteMultipartUpload")?;
    if let Some(name) = root.unknown_child(&["Part"]) {
        return Err(S3Error::malformed_xml(format!("unknown element {name}")));
    }
    if root.children.is_empty() || root.children.len() > usize::from(MAX_PARTS) {
        return Err(S3Error::malformed_xml("it must name 1 to 10000 parts"));
    }
    root.children.iter().map(completed_part).collect()
}

fn completed_part(part: &Element) -> S3Result<CompletedPart> {
    let field = |name: &str| {
        part.child_text(name)
            .map(str::trim)
            .ok_or_else(|| S3Error::malformed_xml(format!("a Part has no single {name}")))
    };
    let number =
        field("PartNumber")?.parse().map_err(|_| S3Error::malformed_xml("a PartNumber is not a number"))?;
    let etag = field("ETag")?;
    let etag = etag.strip_prefix('"').and_then(|e| e.strip_suffix('"')).unwrap_or(etag).to_owned();
    let mut checksum = None;
    for child in part.children.iter().filter(|c| c.name != "PartNumber" && c.name != "ETag") {
        let algorithm = child
            .name
            .strip_prefix("Checksum")
            .and_then(checksum::by_name)
            .ok_or_else(|| S3Error::malformed_xml(format!("unknown element {}", child.name)))?;
        let digest = checksum::decode(algorithm, child.text.trim())
            .ok_or_else(|| S3Error::malformed_xml(format!("{} is malformed", child.name)))?;
        if checksum.replace((algorithm, digest)).is_some() {
            return Err(S3Error::malformed_xml("a Part has more than one checksum"));
        }
    }
    Ok(CompletedPart { number, etag, checksum })
}

/// Parses the body of CreateBucket: the location constraint, if there is one.
pub fn parse_create_bucket(bytes: &[u8]) -> S3Result<Option<String>> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let root = root(bytes, "CreateBucketConfiguration")?;
    if let Some(name) = root.unknown_child(&["LocationConstraint"]) {
        return Err(S3Error::not_implemented(format_args!("{name} in CreateBucket")));
    }
    if root.children.is_empty() {
        return Ok(None);
    }
    let constraint = root
        .child_text("LocationConstraint")
        .ok_or_else(|| S3Error::malformed_xml("there is more than one LocationConstraint"))?;
    Ok(Some(constraint.trim().to_owned()).filter(|c| !c.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::error::Code;
    use proptest::prelude::*;

    #[test]
    fn deletes_are_read_with_keys_as_they_are() {
        let xml = b"<Delete xmlns=\"x\"><Object><Key> a\t</Key></Object><Object><Key>b</Key><VersionId>null</VersionId></Object><Quiet>true</Quiet></Delete>";
        assert_eq!(
            parse_delete(xml).unwrap(),
            DeleteRequest { keys: vec![" a\t".into(), "b".into()], quiet: true }
        );
    }

    #[test]
    fn deletes_that_ask_for_more_are_refused() {
        for (xml, code) in [
            ("<Delete></Delete>", Code::MalformedXML),
            ("<Delete><Object/></Delete>", Code::MalformedXML),
            ("<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>", Code::MalformedXML),
            ("<Delete><Object><Key>a</Key><What/></Object></Delete>", Code::MalformedXML),
            ("<Delete><Quiet>maybe</Quiet><Object><Key>a</Key></Object></Delete>", Code::MalformedXML),
            ("<Remove><Object><Key>a</Key></Object></Remove>", Code::MalformedXML),
            ("<Delete><Object><Key>a</Key><ETag>x</ETag></Object></Delete>", Code::NotImplemented),
            ("<Delete><Object><Key>a</Key><VersionId>1</VersionId></Object></Delete>", Code::NotImplemented),
        ] {
            assert_eq!(parse_delete(xml.as_bytes()).unwrap_err().code, code, "{xml}");
        }
        let many = format!("<Delete>{}</Delete>", "<Object><Key>a</Key></Object>".repeat(1001));
        assert_eq!(parse_delete(many.as_bytes()).unwrap_err().code, Code::MalformedXML);
    }

    #[test]
    fn completes_are_read() {
        let xml = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"abc\"</ETag><ChecksumCRC32>AQIDBA==</ChecksumCRC32></Part><Part><ETag>&quot;d&quot;</ETag><PartNumber>20000</PartNumber></Part></CompleteMultipartUpload>";
        let parts = parse_complete(xml).unwrap();
        assert_eq!(parts[0].checksum, Some((ChecksumAlgorithm::Crc32, vec![1, 2, 3, 4])));
        assert_eq!((parts[1].number, parts[1].etag.as_str()), (20000, "d"));
        for xml in [
            "<CompleteMultipartUpload/>",
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><PartNumber>x</PartNumber><ETag>a</ETag></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag><ChecksumCRC32>AQ==</ChecksumCRC32></Part></CompleteMultipartUpload>",
        ] {
            assert_eq!(parse_complete(xml.as_bytes()).unwrap_err().code, Code::MalformedXML, "{xml}");
        }
    }

    #[test]
    fn a_location_constraint_is_optional() {
        assert_eq!(parse_create_bucket(b"").unwrap(), None);
        assert_eq!(parse_create_bucket(b"<CreateBucketConfiguration/>").unwrap(), None);
        let xml = b"<CreateBucketConfiguration><LocationConstraint>eu</LocationConstraint></CreateBucketConfiguration>";
        assert_eq!(parse_create_bucket(xml).unwrap().as_deref(), Some("eu"));
        let xml = b"<CreateBucketConfiguration><Location/></CreateBucketConfiguration>";
        assert_eq!(parse_create_bucket(xml).unwrap_err().code, Code::NotImplemented);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (parse_delete(&bytes), parse_complete(&bytes), parse_create_bucket(&bytes));
        }
    }
}
