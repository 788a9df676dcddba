//! Command lines of DMTCP's four programs, versions 2.6 to 4: what they ask for, as far as it means something here.
//!
//! DMTCP reads words by itself: options come first, a value is the next word (or, of `-i` and `-p`, glued to it), and the first
//! word that is none, or the one after `--`, begins the program. What has no meaning here is accepted, and told; what cannot be
//! done as asked is an error.

use super::table::{Means, OPTIONS};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Which of them it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Launch,
    Restart,
    Coordinator,
    Command,
}

/// All of them.
pub const PROGRAMS: [Program; 4] =
    [Program::Launch, Program::Restart, Program::Coordinator, Program::Command];

impl Program {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Launch => "dmtcp_launch",
            Self::Restart => "dmtcp_restart",
            Self::Coordinator => "dmtcp_coordinator",
            Self::Command => "dmtcp_command",
        }
    }

    /// Whose name the first word of a command line is.
    pub fn of(word: &OsStr) -> Option<Self> {
        let name = Path::new(word).file_name()?;
        PROGRAMS.into_iter().find(|program| name == program.name())
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Seconds between checkpoints; 0 is off.
    pub interval: Option<u64>,
    /// Where checkpoints go.
    pub checkpoint_dir: Option<PathBuf>,
    /// Where those to restart from are.
    pub restart_dir: Option<PathBuf>,
    pub is_compressed: Option<bool>,
    pub exit_after_checkpoint: bool,
    pub exit_on_last: bool,
    pub is_daemon: bool,
    /// Where the coordinator is.
    pub host: Option<String>,
    /// A file of hosts to restart on.
    pub host_file: Option<PathBuf>,
    pub port: Option<u16>,
    pub port_file: Option<PathBuf>,
    pub join: Join,
    pub is_quiet: bool,
    /// `--help`, `--version`: nothing else is done.
    pub tell: Option<Tell>,
    /// `-s`, `-c`, … of dmtcp_command.
    pub orders: Vec<Order>,
    /// The program and its arguments, or files.
    pub rest: Vec<OsString>,
    /// What was accepted and does nothing here: options as they were given.
    pub in_vain: Vec<String>,
}

/// Which coordinator a job wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Join {
    #[default]
    Any,
    /// There is to be one.
    Existing,
    /// There is to be none.
    New,
}

/// What is told instead of doing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    Help,
    Version,
}

/// What dmtcp_command asks a coordinator for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Status,
    List,
    /// Returns when it is durable.
    Checkpoint,
    CheckpointAndKill,
    Kill,
    Quit,
    Interval(u64),
}

/// What the words after the program's name ask for.
///
/// # Errors
/// For the person: an option that there is not, one without its value, or one that cannot be honoured.
pub fn parse(program: Program, words: &[OsString]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut words = words.iter().peekable();
    // dmtcp_command has its orders without a dash, too.
    let is_option = |word: &OsStr| word.as_bytes().starts_with(b"-") || program == Program::Command;
    while let Some(word) = words.next_if(|word| is_option(word)) {
        if word == "--" {
            break;
        }
        let shown = word.to_string_lossy().into_owned();
        let (name, glued) = split(&shown);
        let Some(means) = meaning(program, name) else {
            return Err(format!("{shown}: there is no such option"));
        };
        let mut value = || -> Result<OsString, String> {
            let next = glued.map(OsString::from).or_else(|| words.next().cloned());
            next.ok_or_else(|| format!("{shown} takes a value"))
        };
        match means {
            Means::Interval => {
                let seconds = number(&shown, &value()?)?;
                match program {
                    Program::Command => asked.orders.push(Order::Interval(seconds)),
                    _ => asked.interval = Some(seconds),
                }
            }
            Means::CheckpointDir => asked.checkpoint_dir = Some(value()?.into()),
            Means::RestartDir => asked.restart_dir = Some(value()?.into()),
            Means::Compressed(is) => asked.is_compressed = Some(is),
            Means::ExitAfter => asked.exit_after_checkpoint = true,
            Means::ExitOnLast => asked.exit_on_last = true,
            Means::Daemon => asked.is_daemon = true,
            Means::Host => asked.host = Some(value()?.to_string_lossy().into_owned()),
            Means::HostFile => asked.host_file = Some(value()?.into()),
            Means::Port => asked.port = Some(port(&shown, &value()?)?),
            Means::PortFile => asked.port_file = Some(value()?.into()),
            Means::Join(join) => asked.join = join,
            Means::Quiet => asked.is_quiet = true,
            Means::Tell(what) => asked.tell = Some(what),
            Means::Order(order) => asked.orders.push(order),
            Means::Had => {}
            Means::InVain => asked.in_vain.push(shown),
            Means::InVainWith => {
                value()?;
                asked.in_vain.push(shown);
            }
            Means::Refused(why) => return Err(format!("{shown} cannot be had: {why}")),
        }
    }
    asked.rest = words.cloned().collect();
    // A coordinator's port may stand by itself at the end.
    if let (Program::Coordinator, [last]) = (program, &asked.rest[..])
        && last.as_bytes().iter().all(u8::is_ascii_digit)
    {
        asked.port = Some(port("PORT", last)?);
        asked.rest.clear();
    }
    Ok(asked)
}

/// What an option of the program means; `name` may lack the dashes of an order.
fn meaning(program: Program, name: &str) -> Option<Means> {
    let is_bare = !name.starts_with('-');
    let is_it = |known: &str| known == name || (is_bare && known.trim_start_matches('-') == name);
    let mut rows = OPTIONS.iter().filter(|row| row.of.contains(&program));
    rows.find(|row| row.names.iter().any(|known| is_it(known))).map(|row| row.means)
}

/// `-i5` and `-p0` have their value glued to them.
fn split(word: &str) -> (&str, Option<&str>) {
    let (name, value) = word.split_at_checked(2).unwrap_or((word, ""));
    match ["-i", "-p"].contains(&name) && value.starts_with(|c: char| c.is_ascii_digit()) {
        true => (name, Some(value)),
        false => (word, None),
    }
}

/// The number that an option, or a variable, has.
///
/// # Errors
/// It is none.
pub fn number(name: &str, value: &OsStr) -> Result<u64, String> {
    /// Ten years of seconds: more is a mistake.
    const MOST: u64 = 315_576_000;
    let text = value.to_string_lossy();
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = Some(&*text).filter(is_number).and_then(|text| text.parse::<u64>().ok());
    parsed.filter(|number| *number <= MOST).ok_or_else(|| format!("{name}: '{text}' should be a number"))
}

/// The same of a port.
///
/// # Errors
/// It is none.
pub fn port(name: &str, value: &OsStr) -> Result<u16, String> {
    let port = number(name, value)?;
    u16::try_from(port).map_err(|_| format!("{name}: there is no port {port}"))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
