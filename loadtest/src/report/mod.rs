//! Results of measurements: their JSON form, tables for people, and facts about the machine.

mod machine;
mod result;
mod table;

pub use machine::Machine;
pub(crate) use result::HEADS;
pub use result::{Case, Latency, Report, RoleUsage, compare};
pub use table::{Table, bytes_text, duration_text};
