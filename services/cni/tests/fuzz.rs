//! Network configurations as runtimes hand them over, with what users of pods have put into them.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use garboard_cni::plugin::{Environment, run};
use serde_json::Value;

#[test]
fn configurations() {
    let seed = &include_bytes!("__fuzz__/configurations/corpus/portmap.json")[..];
    assert_eq!(run(&environment("ADD"), seed).1, 0);
    garboard_fuzz::fuzz!("configurations", configuration);
}

/// Without a container, so that nothing comes to the daemon, which is not there.
fn environment(command: &str) -> Environment {
    let variables = [("CNI_COMMAND".to_owned(), command.to_owned())].into();
    Environment { variables, program: "garboard".to_owned(), socket: "/nowhere".into() }
}

/// The answer is as the specification has it, and not much longer than the configuration.
fn configuration(bytes: &[u8]) {
    for command in ["ADD", "DEL", "CHECK", "VERSION"] {
        let (answer, status) = run(&environment(command), bytes);
        assert!(answer.len() <= 8 * bytes.len() + 1024, "{answer}");
        let answer: Value = match answer.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).expect("JSON"),
        };
        match (status, command) {
            (0, "VERSION") => assert!(answer["supportedVersions"].is_array(), "{answer}"),
            (0, "ADD") => {
                let given: Value = serde_json::from_slice(bytes).expect("what was taken is JSON");
                assert_eq!(answer, given["prevResult"], "what was before is handed on");
            }
            (0, _) => assert_eq!(answer, Value::Null),
            _ => {
                let told = answer["code"].is_u64() && !answer["msg"].as_str().unwrap_or_default().is_empty();
                assert!(told && answer["cniVersion"].is_string(), "{answer}");
            }
        }
    }
}
