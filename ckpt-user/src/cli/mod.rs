//! One file per verb: parse and print only.
