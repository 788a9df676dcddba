//! What this kernel and these privileges allow, found out by trying it.

use serde::Serialize;

use crate::job::identity::Identity;
use crate::job::runtime_dir::RuntimeDir;

/// How one thing is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Works,
    /// Something slower or less stands in.
    Fallback,
    /// Not to be had.
    Missing,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// Whether nothing works without it.
    pub needed: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Everything that was tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of use.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the main job works here.
    pub fn works(&self) -> bool {
        self.findings.iter().all(|finding| !finding.needed || finding.state != State::Missing)
    }
}

/// Tries everything.
pub fn report() -> Report {
    Report { findings: vec![runtime_directory()] }
}

/// Without it jobs run, but `checkpoint` and `status` do not reach them.
fn runtime_directory() -> Finding {
    let name = "runtime directory";
    let found = Identity::of_caller(None)
        .map_err(|error| error.to_string())
        .and_then(|caller| RuntimeDir::for_user(&caller.fs_ids()).map_err(|error| error.to_string()));
    match found {
        Ok(dir) => {
            let detail = dir.path().display().to_string();
            Finding { name, state: State::Works, needed: false, detail, remedy: None }
        }
        Err(remedy) => Finding {
            name,
            state: State::Missing,
            needed: false,
            detail: "ckptbpf checkpoint and status do not reach this user's jobs".into(),
            remedy: Some(remedy),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_decides() {
        let finding =
            |state, needed| Finding { name: "x", state, needed, detail: String::new(), remedy: None };
        let works = |findings: Vec<Finding>| Report { findings }.works();
        assert!(works(vec![finding(State::Missing, false), finding(State::Fallback, true)]));
        assert!(!works(vec![finding(State::Works, true), finding(State::Missing, true)]));
    }
}
