//! One file per piece of a task: its record, how it is captured and how it is rebuilt.

pub mod clock;
pub mod control;
pub mod credentials;
pub mod denials;
pub mod dispatch;
pub mod ended;
pub mod filters;
pub mod hidden;
pub mod iterators;
pub mod keyring;
pub mod learnt;
pub mod limits;
pub mod outside;
pub mod policy;
pub mod posix_timers;
pub mod proc;
pub mod registers;
pub mod scheduling;
pub mod settings;
pub mod sharing;
pub mod signals;
pub mod sleep;
pub mod surroundings;
pub mod timers;
pub mod unsupported;
pub mod zombie;
