//! The test box and the victims.
