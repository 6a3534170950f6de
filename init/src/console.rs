//! What a person in front of the machine sees: the node agent's screen, and before there is one PID 1's own short lines.

use garboard_sys::console::Consoles;

/// Most text of a screen, bytes.
const MAX_SCREEN_LEN: usize = 16 * 1024;

/// The consoles and what is on them.
#[derive(Debug, Default)]
pub struct Console {
    consoles: Consoles,
    screen: String,
}

impl Console {
    /// Opens all active consoles; a machine without one runs as well.
    pub fn open() -> Self {
        Self { consoles: Consoles::open().unwrap_or_default(), screen: String::new() }
    }

    /// Adds a line of PID 1's own, below whatever is there.
    pub fn line(&mut self, text: &str) {
        self.consoles.write(&format!("garboard: {text}\r\n"));
        // The agent's screen is no longer what is seen, so the next one is drawn even if it is the same.
        self.screen.clear();
    }

    /// Replaces everything by a screen; one that is there already is left alone.
    pub fn draw(&mut self, text: &str) {
        let text = printable(text);
        if text != self.screen {
            // Home and erase below instead of clearing first: a serial line then does not flicker.
            self.consoles.write(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\r\n")));
            self.screen = text;
        }
    }
}

/// The text without anything that could do more to a terminal than colour it.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_SCREEN_LEN));
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if out.len() >= MAX_SCREEN_LEN {
            break;
        }
        let len = match c {
            '\x1b' => colour(rest).unwrap_or(0),
            '\n' => 1,
            c if c.is_control() => 0,
            c => c.len_utf8(),
        };
        out.push_str(rest.get(..len).unwrap_or_default());
        rest = rest.get(len.max(c.len_utf8())..).unwrap_or_default();
    }
    out
}

/// The length of the SGR sequence (ECMA-48, section 8.3.117) that the text begins with.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_pass_and_other_sequences_do_not() {
        let cases = [
            ("plain\nü", "plain\nü"),
            ("\x1b[1;32mgreen\x1b[0m", "\x1b[1;32mgreen\x1b[0m"),
            ("\x1b[2Jx", "[2Jx"),
            ("\x1b]0;title\x07", "]0;title"),
            ("a\rb\tc\x1b", "abc"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_escape_but_colour_gets_through(text in "[\\x1b\\[0-9;mJa\\n]{0,40}") {
            let out = printable(&text);
            for (at, _) in out.match_indices('\x1b') {
                prop_assert!(colour(&out[at..]).is_some(), "{out:?}");
            }
        }
    }
}
