//! `dmtcp_launch`: a program with a directory of its own, hidden beside the pointer that stands for it.

use super::options::Asked;
use super::{common, job, joined, with_path};
use crate::job::ended::Ended;
use crate::job::identity::Identity;
use crate::job::pointer::{self, Names, removed};
use crate::job::terminal::say;
use anyhow::Context;
use std::ffi::OsString;
use std::path::Path;

/// Runs it to its end.
///
/// # Errors
/// It is not run.
pub fn run(asked: &Asked) -> anyhow::Result<Ended> {
    let program = asked.rest.first();
    let program = program.context("no program was given: dmtcp_launch [OPTIONS] PROGRAM [ARG]...")?;
    let caller = Identity::of_caller(None)?.fs_ids();
    let (name, state) = joined::joined(asked, &caller)?;
    joined::write_port(asked, name, &caller)?;
    let above = asked.checkpoint_dir.as_deref().unwrap_or(Path::new("."));
    let tell = |line: &String| {
        if !asked.is_quiet {
            say(line);
        }
    };
    removed::sweep(above, &caller).iter().for_each(tell);
    let id = pointer::new_id().context("cannot number the job")?;
    let dir = above.join(Names::new(program, &id).dir());
    let mut words: Vec<OsString> = vec!["ckptbpf".into(), "launch".into(), with_path("--dir", &dir)];
    words.extend(common(asked, name, state.as_ref()));
    if let Some(is_compressed) = asked.is_compressed {
        let codec = if is_compressed { "--compress=lz4" } else { "--compress=none" };
        words.push(codec.into());
    }
    words.push("--".into());
    words.extend(asked.rest.iter().cloned());
    let ended = job(words, name);
    // One that has come to no checkpoint leaves nothing, and one whose file was removed meanwhile, no checkpoints.
    match removed::take_away(&dir, &caller) {
        Ok(line) => line.iter().for_each(tell),
        Err(error) => log::debug!("{} stays: {error:#}", dir.display()),
    }
    ended
}
