//! What this kernel and these privileges allow, found out by trying it, and what to do about the rest.
//!
//! Invariants: a feature is probed, a kernel version never compared; a probe uses this process's own memory or a
//! child made for it, and leaves nothing behind; no probe can fail the report, a failure *is* its result.
mod bpf;
mod display;
mod memory;
mod privileges;
mod process;

use std::{fs, io};

use crate::job::way;
use serde::Serialize;

/// Whether a feature can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works.
    Ok,
    /// It does not; something else does its work.
    Fallback,
    /// It does not, and nothing does.
    Missing,
}

/// One thing that ckptbpf uses of the kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Feature {
    /// Its name, unique in a report.
    pub name: &'static str,
    /// Whether it can be used.
    pub status: Status,
    /// What it is used for.
    pub used_for: &'static str,
    /// Whether launch, checkpoint and restart need it.
    pub required: bool,
    /// What the probe saw, and what is done instead; empty if there is nothing to say.
    pub detail: String,
    /// What a person can do about it; empty if nothing needs to be done.
    pub action: &'static str,
}

impl Feature {
    const fn new(name: &'static str, used_for: &'static str) -> Self {
        Self { name, status: Status::Ok, used_for, required: false, detail: String::new(), action: "" }
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    fn noting(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn fallback(mut self, detail: impl Into<String>, action: &'static str) -> Self {
        self.status = Status::Fallback;
        self.action = action;
        self.noting(detail)
    }

    fn missing(self, detail: impl Into<String>, action: &'static str) -> Self {
        let mut feature = self.fallback(detail, action);
        feature.status = Status::Missing;
        feature
    }

    /// Missing if the probe failed.
    fn needs<T>(self, probe: io::Result<T>, action: &'static str) -> Self {
        match probe {
            Ok(_) => self,
            Err(e) => self.missing(e.to_string(), action),
        }
    }

    /// A fallback, which `instead` names, if the probe failed.
    fn prefers<T>(self, probe: io::Result<T>, instead: &str, action: &'static str) -> Self {
        match probe {
            Ok(_) => self,
            Err(e) => self.fallback(format!("{e}; {instead}"), action),
        }
    }
}

/// How ckptbpf comes by its rights here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// As root, or with capabilities.
    Privileged,
    /// By the node's daemon, or the job's.
    Daemon,
    /// With what an ordinary user may do.
    Alone,
}

/// What works here.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The kernel's release, for a person: nothing is decided by it.
    pub kernel: String,
    /// How it works.
    pub way: Way,
    /// The features, in the order in which a checkpoint and a restart use them.
    pub features: Vec<Feature>,
}

impl Report {
    /// Whether launch, checkpoint and restart work here: exit status 0 of `ckptbpf check`.
    #[must_use]
    pub fn main_job_works(&self) -> bool {
        self.obstacles().next().is_none()
    }

    /// What is required and missing.
    pub fn obstacles(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|feature| feature.required && feature.status == Status::Missing)
    }

    /// A feature by its name.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

/// Probes everything: about 0.2 s. Forks a few short-lived children; call it from the thread that may trace them.
#[must_use]
pub fn run() -> Report {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let way = match way::Way::choose() {
        way::Way::Privileged => Way::Privileged,
        way::Way::Daemon(_) => Way::Daemon,
        way::Way::Alone | way::Way::Worker(_) | way::Way::Heir(..) => Way::Alone,
    };
    let mut features = privileges::probe();
    features.extend(process::probe(way));
    features.extend(memory::probe());
    features.extend(bpf::probe());
    Report { kernel, way, features }
}
