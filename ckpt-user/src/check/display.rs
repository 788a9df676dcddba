//! The report as a table for a terminal.
use std::fmt;

use super::{Report, Status, Way};

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Fallback => "fallback",
            Self::Missing => "missing",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "with privileges",
            Self::Daemon => "by a daemon of root's",
            Self::Alone => "alone, with what an ordinary user may do",
        })
    }
}

/// Lines of text, the last one ended too. A line a feature, and under those that do not simply work, why and what to do.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
        writeln!(f, "Linux {}", self.kernel)?;
        for feature in &self.features {
            writeln!(f, "{:<8}  {:<width$}  {}", feature.status, feature.name, feature.used_for)?;
            for note in [feature.detail.as_str(), feature.action] {
                if !note.is_empty() {
                    let mark = if note == feature.action { "->" } else { "  " };
                    writeln!(f, "{:8}  {:width$}  {mark} {note}", "", "")?;
                }
            }
        }
        if self.main_job_works() {
            return writeln!(f, "launch, checkpoint and restart work here, {}.", self.way);
        }
        let names: Vec<_> = self.obstacles().map(|feature| feature.name).collect();
        writeln!(f, "launch, checkpoint and restart do not work here, for want of: {}.", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use crate::check::{Feature, Report, Way};

    #[test]
    fn columns_are_aligned_and_what_is_missing_is_named_last() {
        let features = vec![
            Feature::new("a", "one").required(),
            Feature::new("longer", "two").fallback("why", "what to do"),
            Feature::new("c", "three").required().missing("why not", ""),
        ];
        let report = Report { kernel: "6.18".into(), way: Way::Alone, features };
        let expected = "Linux 6.18\n\
                        ok        a       one\n\
                        fallback  longer  two\n\
                        \x20                    why\n\
                        \x20                 -> what to do\n\
                        missing   c       three\n\
                        \x20                    why not\n\
                        launch, checkpoint and restart do not work here, for want of: c.\n";
        assert_eq!(report.to_string(), expected);
        assert!(!report.main_job_works());
    }
}
