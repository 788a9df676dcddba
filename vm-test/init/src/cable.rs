//! Bytes from one machine to another, for scripts: `init send ADDRESS:PORT` and `init receive ADDRESS:PORT`.

use std::io::{copy, stdin, stdout};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

/// Standard input, to its end.
pub fn send(to: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| to.to_owned())?;
    copy(&mut stdin(), &mut stream)?;
    Ok(())
}

/// What the first who comes sends, to standard output.
pub fn receive(at: &str) -> Result<()> {
    let (mut stream, _) = TcpListener::bind(at).and_then(|it| it.accept()).with_context(|| at.to_owned())?;
    copy(&mut stream, &mut stdout())?;
    Ok(())
}
