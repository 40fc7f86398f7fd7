//! XML of S3: a writer that escapes everything, and a small reader with limits.

mod bodies;
mod reader;
mod writer;

pub use bodies::{CompletedPart, DeleteRequest, parse_complete, parse_create_bucket, parse_delete};
pub use reader::{Element, XmlError, parse};
pub use writer::XmlWriter;
