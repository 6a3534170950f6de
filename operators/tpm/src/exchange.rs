//! One command to a TPM, and its answer.

use std::fmt;
use std::io::{self, Read, Write};

use tpm2_protocol::TpmWriter;
use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::constant::TPM_MAX_COMMAND_SIZE;
use tpm2_protocol::data::{TpmRc, TpmRh, TpmSt, TpmaSession, TpmsAuthCommand};
use tpm2_protocol::frame::{TpmFrame, TpmResponse, TpmUnmarshalBody, tpm_marshal_command};

use crate::TpmError;

/// Size of what each answer begins with: tag, size and code.
const HEADER: usize = 10;

/// What leads to a TPM: takes a command in one write, and then gives its answer.
pub trait Connection: Read + Write {}

impl<T: Read + Write + ?Sized> Connection for T {}

/// What a TPM has said to a command (TPM 2.0 Library, part 2, section 6.6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(u32);

impl ResponseCode {
    const SUCCESS: Self = Self(0);

    /// Which of the codes it is, without what it is about.
    pub(crate) fn known(self) -> Option<TpmRc> {
        TpmRc::try_from(self.0).ok()
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(known) => write!(f, "{known} ({:#x})", self.0),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a command shows that its caller may use what it names. All passwords are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authorization {
    None,
    EmptyPassword,
    /// For the first thing that the command names, and a session for the second, whose policy it satisfies.
    EmptyPasswordAndPolicy(TpmHandle),
}

/// Has a TPM carry out a command.
pub(crate) fn exchange<R: TpmUnmarshalBody>(
    connection: &mut impl Connection,
    operation: &'static str,
    command: &impl TpmFrame,
    authorization: Authorization,
) -> Result<R, TpmError> {
    let protocol = |source| TpmError::Protocol { operation, source };
    let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
    let mut writer = TpmWriter::new(&mut buffer);
    let password = TpmsAuthCommand { session_handle: (TpmRh::Pw as u32).into(), ..TpmsAuthCommand::default() };
    let (tag, sessions) = match authorization {
        Authorization::None => (TpmSt::NoSessions, vec![]),
        Authorization::EmptyPassword => (TpmSt::Sessions, vec![password]),
        Authorization::EmptyPasswordAndPolicy(session_handle) => {
            // It stays until it is let go of, whatever becomes of the command.
            let session_attributes = TpmaSession::CONTINUE_SESSION;
            let policy = TpmsAuthCommand { session_handle, session_attributes, ..TpmsAuthCommand::default() };
            (TpmSt::Sessions, vec![password, policy])
        }
    };
    tpm_marshal_command(command, tag, &sessions, &mut writer).map_err(protocol)?;
    let broken = |source| TpmError::Exchange { operation, source };
    connection.write_all(writer.as_bytes()).map_err(broken)?;
    let answer = receive(connection, &mut buffer).map_err(broken)?;
    match code(answer) {
        ResponseCode::SUCCESS => TpmResponse::cast(answer).and_then(TpmResponse::unmarshal).map_err(protocol),
        code => Err(TpmError::Refused { operation, code }),
    }
}

/// Reads one answer. The kernel gives it whole at the first read, a socket as it comes.
fn receive<'a>(connection: &mut impl Connection, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut filled = 0;
    let mut size = HEADER;
    while filled < size {
        match connection.read(&mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
        if filled >= HEADER {
            size = field(buffer, 2) as usize;
        }
        if !(HEADER..=buffer.len()).contains(&size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {size} bytes")));
        }
    }
    Ok(&buffer[..filled])
}

fn code(answer: &[u8]) -> ResponseCode {
    ResponseCode(field(answer, 6))
}

/// The number of four bytes at this place.
fn field(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use tpm2_protocol::frame::{TpmFlushContextCommand, TpmFlushContextResponse};

    use super::*;

    /// Takes anything, and answers in pieces.
    struct Played(Vec<Vec<u8>>);

    impl Read for Played {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = if self.0.is_empty() { Vec::new() } else { self.0.remove(0) };
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    impl Write for Played {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(answer: &[&[u8]]) -> Result<(), TpmError> {
        let mut played = Played(answer.iter().map(|piece| piece.to_vec()).collect());
        let command = TpmFlushContextCommand { handles: [], flush_handle: 0x8000_0000.into() };
        exchange::<TpmFlushContextResponse>(&mut played, "play", &command, Authorization::None).map(drop)
    }

    const DONE: &[u8] = &[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

    #[test]
    fn an_answer_may_come_in_pieces() {
        ask(&[DONE]).unwrap();
        ask(&[&DONE[..3], &DONE[3..9], &DONE[9..]]).unwrap();
    }

    #[test]
    fn an_answer_that_lies_about_its_size_is_refused() {
        for (name, answer) in [
            ("none", Vec::new()),
            ("short", DONE[..9].to_vec()),
            ("less than a header", [&DONE[..5], &[9], &DONE[6..]].concat()),
            ("more than there is", [&DONE[..5], &[11], &DONE[6..]].concat()),
            ("more than there can be", [&DONE[..2], &[0, 0, 16, 1], &DONE[6..]].concat()),
            ("less than there is", [DONE, &[0]].concat()),
        ] {
            let error = ask(&[&answer]).unwrap_err();
            assert!(matches!(error, TpmError::Exchange { .. } | TpmError::Protocol { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn what_a_tpm_says_is_told_by_name_and_number() {
        for (code, said) in [(0x0000_0922_u32, "0x922"), (0x0001_2345, "0x12345")] {
            let answer = [&DONE[..6], &code.to_be_bytes()].concat();
            let error = ask(&[&answer]).unwrap_err();
            assert!(matches!(error, TpmError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
