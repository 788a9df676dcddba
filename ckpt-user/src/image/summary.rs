//! The summary: what `list` shows of a generation without reading its metadata.

/// Whether a generation stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    Full = 0,
    Delta = 1,
}

/// Counts and times of one generation.
///
/// The caller gives `time_unix_ns`, `freeze_us`, `elapsed_us`, `bytes_memory`, `tasks` and `program`; the writer
/// fills in the rest at commit.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Summary {
    #[prost(enumeration = "Kind", tag = "1")]
    #[serde(serialize_with = "kind_name")]
    pub kind: i32,
    /// When the program was frozen: nanoseconds since 1970, UTC. In JSON: RFC 3339.
    #[prost(sint64, tag = "2")]
    #[serde(rename = "time", serialize_with = "time_text")]
    pub time_unix_ns: i64,
    /// How long the program stood still, in microseconds.
    #[prost(uint64, tag = "3")]
    pub freeze_us: u64,
    /// From the request to the last byte that was ready to be written, in microseconds.
    #[prost(uint64, tag = "4")]
    pub elapsed_us: u64,
    /// Pages whose contents are stored here and used.
    #[prost(uint64, tag = "5")]
    pub pages: u64,
    /// Pages that are all zeros: no contents stored.
    #[prost(uint64, tag = "6")]
    pub zero_pages: u64,
    /// Pages of private file mappings that are the file's again.
    #[prost(uint64, tag = "7")]
    pub back_to_file_pages: u64,
    /// Pages stored here whose contents were stored again later or went away: the price of pre-copy.
    #[prost(uint64, tag = "8")]
    pub dead_pages: u64,
    /// Memory the program had, as the caller counts it, in bytes.
    #[prost(uint64, tag = "9")]
    pub bytes_memory: u64,
    /// Length of the file in bytes. Of fixed width, so that it can be known before it is written.
    #[prost(fixed64, tag = "10")]
    pub bytes_stored: u64,
    #[prost(uint32, tag = "11")]
    pub tasks: u32,
    /// Name of the first process's program.
    #[prost(string, tag = "12")]
    pub program: String,
}

// serde hands fields over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn kind_name<S: serde::Serializer>(kind: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match Kind::try_from(*kind) {
        Ok(Kind::Full) => "full",
        Ok(Kind::Delta) => "delta",
        Err(_) => "unknown",
    })
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn time_text<S: serde::Serializer>(unix_ns: &i64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*unix_ns))
}

/// `2026-05-17T08:30:00.123Z`; days to date as in <https://howardhinnant.github.io/date_algorithms.html>.
#[must_use]
pub fn rfc3339(unix_ns: i64) -> String {
    let (seconds, milliseconds) =
        (unix_ns.div_euclid(1_000_000_000), unix_ns.rem_euclid(1_000_000_000) / 1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}
