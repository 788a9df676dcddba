//! One file per piece of a task: its record, how it is captured and how it is rebuilt.

pub mod credentials;
pub mod hidden;
pub mod limits;
pub mod proc;
pub mod registers;
pub mod scheduling;
pub mod settings;
pub mod sharing;
pub mod signals;
pub mod surroundings;
pub mod unsupported;
pub mod zombie;
