//! What test process and init say to each other: one JSON value a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::leaks::Leak;

/// A program to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub serial: u64,
    pub argv: Vec<String>,
    pub env: Vec<(String, Option<String>)>,
    pub cwd: PathBuf,
    pub stdin: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

/// From the test to init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Spawn(Order),
    Kill {
        serial: u64,
        pid: i32,
        signal: i32,
    },
    /// What of the kinds `tolerated` is left is not waited for, and not told.
    Finish {
        serial: u64,
        grace_ms: u64,
        tolerated: Vec<Leak>,
    },
}

/// What init answers to the request with the same serial number.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Spawned { pid: i32 },
    Refused { error: String },
    Signalled { errno: i32 },
    Left { found: Vec<(Leak, String)> },
}

/// From init to the test.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// From the process outside the namespace: the id under which init is known there.
    Init { pid: i32 },
    /// The box stands.
    Ready,
    /// The answer to a request.
    Answer { serial: u64, answer: Answer },
    /// A program started by request has ended with this raw wait status.
    Exited { serial: u64, status: i32 },
    /// The box ends now: its time is over, with these processes in it.
    TimeLimit { after_ms: u64, processes: Vec<String> },
}
