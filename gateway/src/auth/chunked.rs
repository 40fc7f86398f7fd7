//! The `aws-chunked` encoding of a body, signed or not, with or without trailers, as a pure decoder:
//! bytes in, payload out.
//!
//! Payload is handed on before its chunk's signature was checked, so that a chunk of any size needs no
//! memory. That is safe because the body ends in an error if a signature does not hold, and nothing becomes
//! visible of a body that does not end well.

use super::sigv4::{self, SigningKey};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Longest line between chunks, in bytes: a chunk's head or a trailer.
const MAX_LINE: usize = 4096;
/// Most trailers.
const MAX_TRAILERS: usize = 8;
/// SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// The trailer that signs the others.
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// Why a chunked body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("the chunked body is malformed: {0}")]
    Malformed(&'static str),
    #[error("the signature of a chunk or of the trailers does not match")]
    BadSignature,
    #[error("the body is longer than x-amz-decoded-content-length")]
    TooLong,
    #[error("the body ended before its last chunk, or is shorter than x-amz-decoded-content-length")]
    Incomplete,
}

/// Signs chunk after chunk, each over the signature before it.
#[derive(Debug, Clone)]
pub struct ChunkSigner {
    key: SigningKey,
    /// `date` and `scope`, as in the string to sign.
    date_and_scope: String,
    previous: String,
}

impl ChunkSigner {
    /// Starts from the signature of the request's head. `date` as in `x-amz-date`.
    pub fn new(key: SigningKey, date: &str, scope: &str, seed: &str) -> Self {
        Self { key, date_and_scope: format!("{date}\n{scope}"), previous: seed.to_owned() }
    }

    fn check_chunk(&mut self, data_hash: &str, signature: &str) -> Result<(), ChunkError> {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{EMPTY_SHA256}\n{data_hash}",
            self.date_and_scope, self.previous
        );
        self.advance(&text, signature)
    }

    fn check_trailers(&mut self, hash: &str, signature: &str) -> Result<(), ChunkError> {
        let text = format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{hash}", self.date_and_scope, self.previous);
        self.advance(&text, signature)
    }

    fn advance(&mut self, string_to_sign: &str, signature: &str) -> Result<(), ChunkError> {
        let ours = self.key.sign(string_to_sign);
        if !sigv4::equal(&ours, signature) {
            return Err(ChunkError::BadSignature);
        }
        self.previous = ours;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or in a chunk's head line.
    Head,
    /// In a chunk's data, so many bytes before its end.
    Data(u64),
    /// In the line end behind a chunk's data.
    DataEnd,
    /// In the trailers.
    Trailers,
    /// In the empty line behind the last chunk.
    LastLine,
    Done,
}

/// The decoder of one body.
#[derive(Debug)]
pub struct ChunkDecoder {
    signer: Option<ChunkSigner>,
    /// Names that `x-amz-trailer` announced, in lower case; `None`: the encoding has no trailers.
    announced: Option<Vec<String>>,
    /// Payload that is still to come.
    left: u64,
    state: State,
    line: Vec<u8>,
    hash: Sha256,
    /// The signature in the head of the chunk under way.
    signature: String,
    trailers: Vec<(String, String)>,
    trailer_signature: Option<String>,
}

impl ChunkDecoder {
    /// A decoder of `length` bytes of payload.
    pub fn new(signer: Option<ChunkSigner>, announced: Option<Vec<String>>, length: u64) -> Self {
        Self {
            signer,
            announced,
            left: length,
            state: State::Head,
            line: Vec::new(),
            hash: Sha256::new(),
            signature: String::new(),
            trailers: Vec::new(),
            trailer_signature: None,
        }
    }

    /// Takes bytes from `input` until there is payload to hand on; `None` when all were taken.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, ChunkError> {
        while !input.is_empty() {
            if let State::Data(left) = self.state {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                let data = input.split_to(take);
                if self.signer.is_some() {
                    self.hash.update(&data);
                }
                let left = left - take as u64;
                self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                return Ok(Some(data));
            }
            if let Some(line) = self.take_line(input)? {
                self.on_line(&line)?;
            }
        }
        Ok(None)
    }

    /// To be called at the end of the body: the trailers, unless the body is incomplete.
    pub fn finish(mut self) -> Result<Vec<(String, String)>, ChunkError> {
        if self.line.is_empty() {
            match self.state {
                // Some clients leave out the last, empty line; all that counts was checked.
                State::LastLine => self.state = State::Done,
                State::Trailers => self.end_trailers()?,
                _ => {}
            }
        }
        if self.state != State::Done || self.left > 0 {
            return Err(ChunkError::Incomplete);
        }
        Ok(self.trailers)
    }

    /// Collects a line; returns it without its end once it is whole.
    fn take_line(&mut self, input: &mut Bytes) -> Result<Option<String>, ChunkError> {
        let end = input.iter().position(|b| *b == b'\n');
        let piece = input.split_to(end.map_or(input.len(), |at| at + 1));
        if self.line.len() + piece.len() > MAX_LINE {
            return Err(ChunkError::Malformed("a line is too long"));
        }
        self.line.extend_from_slice(&piece);
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map(Some).map_err(|_| ChunkError::Malformed("a line is not text"))
    }

    fn on_line(&mut self, line: &str) -> Result<(), ChunkError> {
        match self.state {
            State::Head => self.on_head(line),
            State::DataEnd if line.is_empty() => {
                self.check_chunk()?;
                self.state = State::Head;
                Ok(())
            }
            State::DataEnd => Err(ChunkError::Malformed("a chunk is longer than its head says")),
            State::LastLine if line.is_empty() => {
                self.state = State::Done;
                Ok(())
            }
            State::Trailers if line.is_empty() => self.end_trailers(),
            State::Trailers => self.on_trailer(line),
            State::LastLine | State::Done | State::Data(_) => {
                Err(ChunkError::Malformed("there is data behind the last chunk"))
            }
        }
    }

    fn on_head(&mut self, line: &str) -> Result<(), ChunkError> {
        let (size, extension) = line.split_once(';').map_or((line, None), |(s, e)| (s, Some(e)));
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ChunkError::Malformed("a chunk's size is not a hexadecimal number"));
        }
        let size =
            u64::from_str_radix(size, 16).map_err(|_| ChunkError::Malformed("a chunk is too large"))?;
        match (&self.signer, extension) {
            (Some(_), Some(extension)) => {
                self.signature = extension
                    .trim()
                    .strip_prefix("chunk-signature=")
                    .and_then(sigv4::parse_signature)
                    .ok_or(ChunkError::Malformed("a chunk's head has no well-formed chunk-signature"))?;
            }
            (Some(_), None) => return Err(ChunkError::Malformed("a chunk has no signature")),
            (None, Some(_)) => return Err(ChunkError::Malformed("a chunk's head has an unknown extension")),
            (None, None) => {}
        }
        self.left = self.left.checked_sub(size).ok_or(ChunkError::TooLong)?;
        if size > 0 {
            self.state = State::Data(size);
            return Ok(());
        }
        self.check_chunk()?;
        self.state = if self.announced.is_some() { State::Trailers } else { State::LastLine };
        Ok(())
    }

    fn check_chunk(&mut self) -> Result<(), ChunkError> {
        let hash = std::mem::take(&mut self.hash);
        match &mut self.signer {
            Some(signer) => signer.check_chunk(&hex::encode(hash.finalize()), &self.signature),
            None => Ok(()),
        }
    }

    fn on_trailer(&mut self, line: &str) -> Result<(), ChunkError> {
        let (name, value) = line.split_once(':').ok_or(ChunkError::Malformed("a trailer has no colon"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        if self.trailer_signature.is_some() {
            return Err(ChunkError::Malformed("a trailer follows the trailers' signature"));
        }
        if name == TRAILER_SIGNATURE && self.signer.is_some() {
            let signature = sigv4::parse_signature(&value)
                .ok_or(ChunkError::Malformed("the trailers' signature is not 64 hexadecimal digits"))?;
            self.trailer_signature = Some(signature);
            return Ok(());
        }
        let announced = self.announced.as_ref().is_some_and(|a| a.contains(&name));
        if !announced || self.trailers.len() >= MAX_TRAILERS || self.trailers.iter().any(|(n, _)| *n == name)
        {
            return Err(ChunkError::Malformed("a trailer was not announced in x-amz-trailer, or came twice"));
        }
        self.trailers.push((name, value));
        Ok(())
    }

    fn end_trailers(&mut self) -> Result<(), ChunkError> {
        let missing = self.announced.iter().flatten().any(|a| !self.trailers.iter().any(|(n, _)| n == a));
        if missing {
            return Err(ChunkError::Malformed("a trailer that x-amz-trailer announced did not come"));
        }
        if let Some(signer) = &mut self.signer {
            let signature = self
                .trailer_signature
                .as_deref()
                .ok_or(ChunkError::Malformed("x-amz-trailer-signature did not come"))?;
            let mut hash = Sha256::new();
            for (name, value) in &self.trailers {
                hash.update(format!("{name}:{value}\n"));
            }
            signer.check_trailers(&hex::encode(hash.finalize()), signature)?;
        }
        self.state = State::Done;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sigv4::Credential;
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    /// The example of AWS, "Signature calculations for the Authorization header: transferring payload in
    /// multiple chunks".
    const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    const CHUNKS: [(usize, &str); 3] = [
        (65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ];
    /// The example with a trailer.
    const SEED_TRAILER: &str = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
    const CHUNKS_TRAILER: [(usize, &str); 3] = [
        (65536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
        (1024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
        (0, "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
    ];
    const TRAILERS: &str = "x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n";

    fn signer(seed: &str) -> ChunkSigner {
        let credential =
            Credential::parse("AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request").unwrap();
        let key = SigningKey::derive("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", &credential);
        ChunkSigner::new(key, "20130524T000000Z", &credential.scope(), seed)
    }

    fn wire(chunks: &[(usize, &str)], end: &str) -> String {
        let mut text = String::new();
        for (size, signature) in chunks {
            write!(text, "{size:x};chunk-signature={signature}\r\n").unwrap();
            if *size > 0 {
                text.push_str(&"a".repeat(*size));
                text.push_str("\r\n");
            }
        }
        text + end
    }

    fn crc32c() -> Vec<String> {
        vec!["x-amz-checksum-crc32c".into()]
    }

    type IsExpected = fn(&ChunkError) -> bool;
    type Decoded = (Vec<u8>, Vec<(String, String)>);

    fn decode(mut decoder: ChunkDecoder, wire: &[u8], piece: usize) -> Result<Decoded, ChunkError> {
        let mut out = Vec::new();
        for part in wire.chunks(piece.max(1)) {
            let mut input = Bytes::copy_from_slice(part);
            while let Some(data) = decoder.decode(&mut input)? {
                out.extend_from_slice(&data);
            }
        }
        Ok((out, decoder.finish()?))
    }

    #[test]
    fn the_documented_signed_body_is_decoded_however_it_is_cut() {
        let wire = wire(&CHUNKS, "\r\n");
        for piece in [1, 7, 1000, 65536, usize::MAX] {
            let decoder = ChunkDecoder::new(Some(signer(SEED)), None, 66560);
            let (data, trailers) = decode(decoder, wire.as_bytes(), piece).unwrap();
            assert_eq!((data, trailers), (vec![b'a'; 66560], Vec::new()));
        }
    }

    #[test]
    fn the_documented_body_with_a_signed_trailer_is_decoded() {
        let wire = wire(&CHUNKS_TRAILER, &format!("{TRAILERS}\r\n"));
        let decoder = ChunkDecoder::new(Some(signer(SEED_TRAILER)), Some(crc32c()), 66560);
        let (data, trailers) = decode(decoder, wire.as_bytes(), 999).unwrap();
        assert_eq!(data.len(), 66560);
        assert_eq!(trailers, [("x-amz-checksum-crc32c".into(), "sOO8/Q==".into())]);
    }

    #[test]
    fn changed_data_signatures_and_trailers_are_found() {
        let signed = wire(&CHUNKS, "\r\n");
        let with_trailer = wire(&CHUNKS_TRAILER, &format!("{TRAILERS}\r\n"));
        let cases = [
            (signed.replacen("aaaa", "aaba", 1), SEED, None),
            (signed.replace("b6c6ea", "b6c6eb"), SEED, None),
            (signed, SEED_TRAILER, None),
            (with_trailer.replace("sOO8", "tOO8"), SEED_TRAILER, Some(crc32c())),
            (with_trailer.replace("d81f82", "d81f83"), SEED_TRAILER, Some(crc32c())),
        ];
        for (i, (wire, seed, announced)) in cases.into_iter().enumerate() {
            let decoder = ChunkDecoder::new(Some(signer(seed)), announced, 66560);
            assert_eq!(decode(decoder, wire.as_bytes(), 4096), Err(ChunkError::BadSignature), "{i}");
        }
    }

    #[test]
    fn an_unsigned_body_with_a_trailer_is_decoded() {
        let wire = "4\r\nwiki\r\n5\r\npedia\r\n0\r\nX-Amz-Checksum-Crc32c: AAAAAA==\r\n\r\n";
        let (data, trailers) =
            decode(ChunkDecoder::new(None, Some(crc32c()), 9), wire.as_bytes(), 1).unwrap();
        assert_eq!(data, b"wikipedia");
        assert_eq!(trailers, [("x-amz-checksum-crc32c".into(), "AAAAAA==".into())]);
    }

    #[test]
    fn malformed_unsigned_bodies_are_refused() {
        use ChunkError::{Incomplete, Malformed, TooLong};
        let sum = "x-amz-checksum-crc32c:AAAAAA==\r\n\r\n";
        let cases: Vec<(String, IsExpected)> = vec![
            (String::new(), |e| *e == Incomplete),
            ("4\r\nwi".into(), |e| *e == Incomplete),
            (format!("4\r\nwiki\r\n0\r\n{sum}"), |e| *e == Incomplete),
            (format!("9\r\nwikipedia\r\n0\r\n{}", sum.trim_end()), |e| *e == Incomplete),
            (format!("a\r\nwikipedia.\r\n0\r\n{sum}"), |e| *e == TooLong),
            (format!("ffffffffffffffff\r\nx\r\n0\r\n{sum}"), |e| *e == TooLong),
            (format!("9\r\nwikipedia!\r\n0\r\n{sum}"), |e| matches!(e, Malformed(_))),
            (format!("9;a=b\r\nwikipedia\r\n0\r\n{sum}"), |e| matches!(e, Malformed(_))),
            (format!("-9\r\nwikipedia\r\n0\r\n{sum}"), |e| matches!(e, Malformed(_))),
            (format!("9\r\nwikipedia\r\n0\r\n{sum}more\r\n"), |e| matches!(e, Malformed(_))),
            ("9\r\nwikipedia\r\n0\r\n\r\n".into(), |e| matches!(e, Malformed(_))),
            ("9\r\nwikipedia\r\n0\r\nx-other:1\r\n\r\n".into(), |e| matches!(e, Malformed(_))),
            ("9".repeat(5000), |e| matches!(e, Malformed(_))),
        ];
        for (wire, is_expected) in cases {
            let error = decode(ChunkDecoder::new(None, Some(crc32c()), 9), wire.as_bytes(), 5).unwrap_err();
            assert!(is_expected(&error), "{wire:?}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(data in proptest::collection::vec(any::<u8>(), 0..400), signed: bool, piece in 1usize..50) {
            let signer = signed.then(|| signer(SEED));
            let _ = decode(ChunkDecoder::new(signer, Some(crc32c()), 100), &data, piece);
        }

        #[test]
        fn what_is_encoded_comes_out(chunks in proptest::collection::vec(".{1,30}", 0..10), piece in 1usize..50) {
            let mut wire = String::new();
            for chunk in &chunks {
                write!(wire, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
            }
            wire.push_str("0\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n");
            let whole = chunks.concat();
            let decoder = ChunkDecoder::new(None, Some(crc32c()), whole.len() as u64);
            let (data, _) = decode(decoder, wire.as_bytes(), piece).unwrap();
            prop_assert_eq!(data, whole.into_bytes());
        }
    }
}
