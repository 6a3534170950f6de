//! Takes out of a log what is secret by its form: tokens, passwords in addresses, private keys. Nothing of the kind should be there in the
//! first place.

use garboard_api::types::Token;

/// What stands in a secret's place.
const REDACTED: &str = "[redacted]";

/// The lines of one log, one after the other.
#[derive(Debug, Default)]
pub struct Redact {
    /// Whether the lines belong to a private key.
    key: bool,
}

impl Redact {
    /// A line without what is secret in it; its end stays.
    pub fn line(&mut self, line: &str) -> String {
        if self.key || line.contains("PRIVATE KEY-----") {
            // On one line or on many: until its end everything is the key's.
            self.key = match (line.rfind("-----BEGIN"), line.rfind("-----END")) {
                (None, None) => self.key,
                (begin, end) => begin > end,
            };
            return format!("{REDACTED}\n");
        }
        let mut bearer = false;
        line.split_inclusive([' ', '\t', '\n', '"', '\'', '=', ',', ';', '(', ')']).fold(
            String::new(),
            |mut text, part| {
                let word = part.trim_end_matches([' ', '\t', '\n', '"', '\'', '=', ',', ';', '(', ')']);
                let end = part.get(word.len()..).unwrap_or_default();
                let secret = !word.is_empty() && (bearer || Token::parse(word).is_some() || is_web_token(word));
                // What stands between the word and its secret is nothing but an end.
                bearer = word.eq_ignore_ascii_case("bearer") || (bearer && word.is_empty());
                text += if secret { REDACTED.to_owned() } else { without_password(word) }.as_str();
                text + end
            },
        )
    }
}

/// A JSON Web Token (RFC 7519), such as those of service accounts.
fn is_web_token(word: &str) -> bool {
    word.starts_with("eyJ") && word.len() > 60 && word.matches('.').count() == 2
}

/// An address without the password that it may have.
fn without_password(word: &str) -> String {
    let password = || {
        let (scheme, rest) = word.split_once("://")?;
        let (account, host) = rest.split_once('@')?;
        let (user, _) = account.split_once(':')?;
        Some(format!("{scheme}://{user}:{REDACTED}@{host}"))
    };
    password().unwrap_or_else(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let web_token = format!("eyJ{}.{}.x", "a".repeat(40), "b".repeat(40));
        for (line, expected) in [
            ("started in 3.5 s\n", "started in 3.5 s\n"),
            ("token=abcdef.0123456789abcdef, next\n", "token=[redacted], next\n"),
            ("Authorization: Bearer s3cret\n", "Authorization: Bearer [redacted]\n"),
            ("get https://me:hush@mirror.example/v2/\n", "get https://me:[redacted]@mirror.example/v2/\n"),
            ("see https://mirror.example/a@b\n", "see https://mirror.example/a@b\n"),
            (&format!("{{\"token\":\"{web_token}\"}}\n"), "{\"token\":\"[redacted]\"}\n"),
        ] {
            assert_eq!(Redact::default().line(line), expected);
        }
    }

    #[test]
    fn a_key_goes_whole_on_one_line_or_on_many() {
        let mut redact = Redact::default();
        let lines = ["a\n", "-----BEGIN PRIVATE KEY-----\n", "MIGH\n", "-----END PRIVATE KEY-----\n", "b\n"];
        let text: String = lines.iter().map(|line| redact.line(line)).collect();
        assert_eq!(text, "a\n[redacted]\n[redacted]\n[redacted]\nb\n");
        let one = "x -----BEGIN EC PRIVATE KEY-----\\nMIGH\\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(redact.line(one), "[redacted]\n");
        assert_eq!(redact.line("c\n"), "c\n");
    }

    proptest! {
        #[test]
        fn what_is_no_secret_is_as_it_was(line in "[a-z0-9 ,;()='\"]{0,80}") {
            prop_assume!(!line.contains("bearer"));
            prop_assert_eq!(Redact::default().line(&line), line);
        }
    }
}
