//! Sort keys that begin with an object key: order-preserving, and unambiguous when more follows.
//!
//! A zero byte is written `00 FF`, the end of the key `00 01`: so `a` sorts before `a\0b` and both before
//! `ab`, exactly as the plain keys do, and a prefix of keys is a prefix of their escaped forms.

const END: [u8; 2] = [0x00, 0x01];

/// The escaped form of `text` without its end: the common beginning of all keys with that prefix.
pub fn prefix(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 24);
    for &byte in text {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out
}

/// The escaped form of a whole key; what follows it orders rows of the same key.
pub fn whole(text: &[u8]) -> Vec<u8> {
    let mut out = prefix(text);
    out.extend_from_slice(&END);
    out
}

/// Splits a sort key into the plain key and the rest. `None` if it was not made by [`whole`].
pub fn split(sort_key: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::with_capacity(sort_key.len());
    let mut i = 0;
    while i < sort_key.len() {
        let byte = sort_key[i];
        if byte != 0 {
            out.push(byte);
            i += 1;
            continue;
        }
        match sort_key.get(i + 1) {
            Some(0xFF) => out.push(0),
            Some(0x01) => return Some((out, &sort_key[i + 2..])),
            _ => return None,
        }
        i += 2;
    }
    None
}

/// The first byte string above every string that begins with `prefix`; `None` if there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut out = prefix.to_vec();
    while let Some(last) = out.pop() {
        if last < 0xFF {
            out.push(last + 1);
            return Some(out);
        }
    }
    None
}
