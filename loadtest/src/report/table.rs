//! Plain tables for the terminal, and short texts for sizes and durations.

use std::fmt;
use std::time::Duration;

/// Rows of equal length under heads; the first column is aligned to the left.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(heads: impl IntoIterator<Item = String>) -> Self {
        Self { rows: vec![heads.into_iter().collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A duration with three digits at most: `950µs`, `12.3ms`, `4.56s`.
pub fn duration_text(duration: Duration) -> String {
    let micros = duration.as_micros() as f64;
    if micros < 1e3 {
        format!("{micros:.0}µs")
    } else if micros < 1e6 {
        let millis = micros / 1e3;
        format!("{millis:.*}ms", if millis < 10.0 { 2 } else { usize::from(millis < 100.0) })
    } else {
        format!("{:.2}s", micros / 1e6)
    }
}

/// A size in the largest unit that gives a whole number: `1KiB`, `64MiB`, `1500B`.
pub fn bytes_text(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(
            [0, 1500, 1 << 10, 64 << 20, 1 << 30].map(bytes_text),
            ["0B", "1500B", "1KiB", "64MiB", "1GiB"]
        );
        let texts = [950, 1_234, 12_345, 123_456, 4_560_000].map(Duration::from_micros).map(duration_text);
        assert_eq!(texts, ["950µs", "1.23ms", "12.3ms", "123ms", "4.56s"]);
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["case".into(), "op/s".into()]);
        table.row(vec!["a".into(), "12345".into()]);
        assert_eq!(table.to_string(), "case   op/s\na     12345\n");
    }
}
