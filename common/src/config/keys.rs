//! Finds keys of a configuration file that nobody would read, and says what was meant.
//!
//! The known keys are those of the serde structs themselves (asked through [`fields`]), so there is no
//! second list to keep. Refusing a typo at start beats ignoring `data_fync = true` for a year.

use super::Problem;
use serde::de::{self, DeserializeOwned, Error as _, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of one table of the file, and which of them hold tables of known keys (or lists of such).
pub struct Known {
    /// Every key.
    pub keys: &'static [&'static str],
    /// The keys whose value is a table, or a list of tables.
    pub sections: Vec<(&'static str, Known)>,
}

impl Known {
    /// A table without tables in it.
    pub fn leaf<T: DeserializeOwned>() -> Self {
        Self { keys: fields::<T>(), sections: Vec::new() }
    }
}

/// Names of the fields that serde would read for `T`; empty if `T` is not a struct.
pub fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);
    impl<'de> de::Deserializer<'de> for Ask<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("only structs have fields"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("only the names were asked"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    // The answer is always an error: the names are what we came for.
    let _ = T::deserialize(Ask(&mut names));
    names
}

/// Keys of Garage's file that mean something else here, or nothing, and what to do instead.
const HINTS: [(&str, &str); 9] = [
    ("replication_factor", "it belongs to the layout: `hayloft layout config --replication-factor N`"),
    ("replication_mode", "it belongs to the layout: `hayloft layout config --replication-factor N`"),
    ("db_engine", "there is one engine; leave it out"),
    ("lmdb_map_size", "there is one engine; leave it out, or set `meta_cache_size`"),
    ("use_local_tz", "lifecycle rules follow UTC; leave it out"),
    ("trace_sink", "it is `otlp_endpoint` in the section [trace]"),
    ("capacity", "it belongs to the layout: `hayloft layout assign NODE -z ZONE -c CAPACITY`"),
    ("tags", "they belong to the layout: `hayloft layout assign NODE -t TAG`"),
    ("rpc_bind_outgoing", "gateways and nodes dial from any address; leave it out"),
];

/// Every unknown key of `table` (at `path`, such as `s3_api.`), as problems with their line.
pub(super) fn unknown(table: &DeTable<'_>, known: &Known, text: &str, path: &str, found: &mut Vec<Problem>) {
    for (key, value) in table {
        let name: &str = key.get_ref().as_ref();
        if !known.keys.contains(&name) {
            found.push(Problem {
                line: Some(line_of(text, key.span().start)),
                text: describe(name, path, known),
            });
            continue;
        }
        let Some((_, inner)) = known.sections.iter().find(|(section, _)| *section == name) else { continue };
        let path = format!("{path}{name}.");
        match value.get_ref() {
            DeValue::Table(table) => unknown(table, inner, text, &path, found),
            DeValue::Array(items) => {
                for table in items.iter().filter_map(|item| item.get_ref().as_table()) {
                    unknown(table, inner, text, &path, found);
                }
            }
            // A value of the wrong type is told by serde.
            _ => {}
        }
    }
}

fn describe(name: &str, path: &str, known: &Known) -> String {
    let what = format!("unknown key `{path}{name}`");
    if let Some((_, hint)) = HINTS.iter().find(|(key, _)| *key == name) {
        return format!("{what}: {hint}");
    }
    // The same name one section further down is a likelier meaning than a similar name here.
    if let Some((section, _)) = known.sections.iter().find(|(_, inner)| inner.keys.contains(&name)) {
        return format!("{what}: did you mean `{path}{section}.{name}`, in the section [{path}{section}]?");
    }
    let Some((distance, nearest)) = known.keys.iter().map(|key| (edit_distance(name, key), *key)).min()
    else {
        return what;
    };
    if distance <= 2.max(name.len() / 3) {
        format!("{what}: did you mean `{path}{nearest}`?")
    } else {
        format!("{what}: the nearest known key is `{path}{nearest}`")
    }
}

/// The line (from 1) of the byte at `offset`.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// The line of the key at `path` (`s3_api.tls_cert`); that of the section, if the key is not written.
pub(super) fn find_line(table: &Spanned<DeTable<'_>>, text: &str, path: &str) -> Option<usize> {
    let mut table = table.get_ref();
    let mut line = None;
    for name in path.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else { break };
        line = Some(line_of(text, key.span().start));
        let Some(inner) = value.get_ref().as_table() else { break };
        table = inner;
    }
    line
}

/// Insertions, removals, replacements and swaps of neighbours that turn `a` into `b` (Damerau's distance
/// with each place edited once).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_struct_are_found_and_a_text_has_none() {
        #[derive(serde::Deserialize)]
        struct Two {
            _one: u8,
            #[serde(rename = "second")]
            _two: u8,
        }
        assert_eq!(fields::<Two>(), ["_one", "second"]);
        assert!(fields::<String>().is_empty());
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, distance) in [
            ("", "ab", 2),
            ("abc", "abc", 0),
            ("acb", "abc", 1),
            ("rpc_secert", "rpc_secret", 1),
            ("a", "b", 1),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
