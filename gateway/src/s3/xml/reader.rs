//! Reads a request's XML into a small tree. Takes any bytes: no entities but the five of XML, no DTD,
//! bounded depth and count; attributes and namespaces mean nothing.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

/// Deepest nesting.
const MAX_DEPTH: usize = 8;
/// Most elements: 10,000 parts of up to 8 elements.
const MAX_ELEMENTS: usize = 100_000;

/// Why bytes are not the XML we take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("{0}")]
    Syntax(String),
    #[error("{0}")]
    Rule(&'static str),
}

/// An element: its name without prefix, its text, its children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The text of the child `name`, if there is exactly one.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        let mut found = self.children.iter().filter(|c| c.name == name);
        let first = found.next()?;
        found.next().is_none().then_some(first.text.as_str())
    }

    /// A child that is none of `names`.
    pub fn unknown_child(&self, names: &[&str]) -> Option<&str> {
        self.children.iter().map(|c| c.name.as_str()).find(|n| !names.contains(n))
    }
}

/// Parses a document.
pub fn parse(bytes: &[u8]) -> Result<Element, XmlError> {
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::NotUtf8)?;
    let mut reader = Reader::from_str(text);
    let mut stack: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0;
    loop {
        let event = reader.read_event().map_err(|e| XmlError::Syntax(e.to_string()))?;
        match event {
            Event::Start(start) | Event::Empty(start) if root.is_some() && stack.is_empty() => {
                let _ = start;
                return Err(XmlError::Rule("there is more than one root element"));
            }
            Event::Start(start) => {
                count += 1;
                if count > MAX_ELEMENTS || stack.len() >= MAX_DEPTH {
                    return Err(XmlError::Rule("it has too many or too deep elements"));
                }
                stack.push(Element { name: local_name(start.name()), ..Element::default() });
            }
            Event::Empty(start) => {
                count += 1;
                if count > MAX_ELEMENTS {
                    return Err(XmlError::Rule("it has too many elements"));
                }
                let element = Element { name: local_name(start.name()), ..Element::default() };
                attach(&mut stack, &mut root, element);
            }
            Event::End(_) => {
                // The reader checks that names match.
                let element = stack.pop().ok_or(XmlError::Rule("an element ends that did not begin"))?;
                attach(&mut stack, &mut root, element);
            }
            Event::Text(piece) => add_text(&mut stack, &piece.xml10_content())?,
            Event::CData(piece) => add_text(&mut stack, &piece.xml10_content())?,
            Event::GeneralRef(reference) => {
                let c = resolve(&reference)?;
                add_text(&mut stack, c.encode_utf8(&mut [0; 4]))?;
            }
            Event::DocType(_) => return Err(XmlError::Rule("document type definitions are not allowed")),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    if !stack.is_empty() {
        return Err(XmlError::Rule("it ends in the middle of an element"));
    }
    root.ok_or(XmlError::Rule("it has no root element"))
}

fn local_name(name: quick_xml::name::QName<'_>) -> String {
    let name: &str = name.as_ref();
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_owned()
}

fn attach(stack: &mut [Element], root: &mut Option<Element>, element: Element) {
    match stack.last_mut() {
        Some(parent) => parent.children.push(element),
        None => *root = Some(element),
    }
}

fn add_text(stack: &mut [Element], text: &str) -> Result<(), XmlError> {
    match stack.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.chars().all(|c| c.is_whitespace() || c == '\u{feff}') => {}
        None => return Err(XmlError::Rule("there is text outside of the root element")),
    }
    Ok(())
}

fn resolve(reference: &BytesRef<'_>) -> Result<char, XmlError> {
    match reference.resolve_char_ref() {
        Ok(Some(c)) => return Ok(c),
        Ok(None) => {}
        Err(error) => return Err(XmlError::Syntax(error.to_string())),
    }
    let name: &str = reference;
    match name {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => Err(XmlError::Rule("it uses an entity that XML does not define")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_text_references_and_namespaces_are_read() {
        let xml = "<?xml version='1.0'?><!-- c --><s3:Delete xmlns:s3='x'><Object><Key>a&amp;b &#x41;<![CDATA[<c>]]></Key></Object><Quiet/></s3:Delete>";
        let root = parse(xml.as_bytes()).unwrap();
        assert_eq!(root.name, "Delete");
        assert_eq!(root.children[0].child_text("Key"), Some("a&b A<c>"));
        assert_eq!(root.unknown_child(&["Object"]), Some("Quiet"));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = "<a>".repeat(20) + &"</a>".repeat(20);
        for xml in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a></a>x",
            "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
            "<a>&e;</a>",
            "<a>&#x110000;</a>",
            deep.as_str(),
        ] {
            assert!(parse(xml.as_bytes()).is_err(), "{xml}");
        }
        assert_eq!(parse(b"<a>\xff</a>"), Err(XmlError::NotUtf8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(<[a-c/!?]{0,3}>?|&[a-z#0-9]{0,4};|[a-z ]){0,30}") {
            let _ = parse(&bytes);
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn what_the_writer_escapes_the_reader_gives_back(text in "[^\u{0}-\u{1f}\u{7f}-\u{9f}\u{fffe}\u{ffff}]*") {
            let mut xml = super::super::XmlWriter::with_root("R");
            xml.text("K", &text).close("R");
            let root = parse(xml.finish().as_bytes()).unwrap();
            prop_assert_eq!(root.child_text("K"), Some(text.as_str()));
        }
    }
}
