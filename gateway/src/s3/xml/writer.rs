//! Writes XML: elements without attributes (but the namespace), everything escaped.

/// The namespace of S3's answers.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// A document being written. Elements must be closed in order by the caller.
#[derive(Debug)]
pub struct XmlWriter(String);

impl XmlWriter {
    /// A document with its declaration.
    pub fn document() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    /// A document whose root element `name` is in S3's namespace.
    pub fn with_root(name: &str) -> Self {
        let mut writer = Self::document();
        for piece in ["<", name, " xmlns=\"", NAMESPACE, "\">"] {
            writer.0.push_str(piece);
        }
        writer
    }

    pub fn open(&mut self, name: &str) -> &mut Self {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
        self
    }

    /// Opens an element given with its attributes, which are the caller's to keep well-formed.
    pub fn raw_open(&mut self, name_and_attributes: &'static str) -> &mut Self {
        self.open(name_and_attributes)
    }

    pub fn close(&mut self, name: &str) -> &mut Self {
        self.0.push_str("</");
        self.open_end(name)
    }

    fn open_end(&mut self, name: &str) -> &mut Self {
        self.0.push_str(name);
        self.0.push('>');
        self
    }

    /// `<name>text</name>`.
    pub fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.open(name);
        escape(&mut self.0, text);
        self.close(name)
    }

    /// Text inside the element that is open.
    pub fn content(&mut self, text: &str) -> &mut Self {
        escape(&mut self.0, text);
        self
    }

    /// `<name>text</name>`, if there is a text.
    pub fn optional(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            self.text(name, text);
        }
        self
    }

    /// `<name>value</name>` for numbers and booleans.
    pub fn value(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.text(name, &value.to_string())
    }

    /// An ETag, with its quotes.
    pub fn etag(&mut self, etag: &str) -> &mut Self {
        self.text("ETag", &format!("\"{etag}\""))
    }

    /// The document.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Escapes text for element content. Control characters become numeric references, as S3 writes them: XML 1.0
/// has no way to say them, and `encoding-type=url` is the clean one.
fn escape(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "&#x{:X};", c as u32);
            }
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_escaped() {
        let mut xml = XmlWriter::with_root("R");
        xml.text("K", "a<b>&\"c\"\u{1}\r\n\u{7f}ü🦀").value("N", 3).optional("O", None).close("R");
        assert_eq!(
            xml.finish(),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<R xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><K>a&lt;b&gt;&amp;&quot;c&quot;&#x1;&#xD;&#xA;&#x7F;ü🦀</K><N>3</N></R>"
        );
    }
}
