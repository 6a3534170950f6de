//! A context in a kubeconfig beside those of others.

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_yaml_ng::{Mapping, Value};

/// What one context needs; its cluster, its user and the context itself have the same name.
pub struct Entry {
    pub name: String,
    /// `https://HOST:PORT`
    pub server: String,
    /// PEM
    pub ca: String,
    /// PEM
    pub certificate: String,
    /// PEM, secret
    pub key: String,
}

/// `known`, the text of a kubeconfig or nothing, with the entry in it and its context current.
///
/// What `known` has under other names stays, whatever it is; comments are lost.
pub fn merge(known: &str, entry: &Entry) -> anyhow::Result<String> {
    let mut config = match serde_yaml_ng::from_str(known).context("parse it as YAML")? {
        Value::Null => Mapping::new(),
        Value::Mapping(config) => config,
        _ => bail!("it is not a kubeconfig"),
    };
    let kind = config.entry("kind".into()).or_insert_with(|| "Config".into());
    if kind.as_str() != Some("Config") {
        bail!("it is not a kubeconfig: its kind is not Config");
    }
    config.entry("apiVersion".into()).or_insert_with(|| "v1".into());
    let data = |pem: &str| Value::from(STANDARD.encode(pem));
    let name = Value::from(entry.name.as_str());
    put(
        &mut config,
        "clusters",
        "cluster",
        &entry.name,
        [("certificate-authority-data", data(&entry.ca)), ("server", entry.server.as_str().into())],
    )?;
    put(
        &mut config,
        "users",
        "user",
        &entry.name,
        [("client-certificate-data", data(&entry.certificate)), ("client-key-data", data(&entry.key))],
    )?;
    put(&mut config, "contexts", "context", &entry.name, [("cluster", name.clone()), ("user", name.clone())])?;
    config.insert("current-context".into(), name);
    Ok(serde_yaml_ng::to_string(&config)?)
}

/// Puts `{name, field: values}` into the named list of `config`, in the place of the one that has this name.
fn put<const N: usize>(
    config: &mut Mapping,
    list: &str,
    field: &str,
    name: &str,
    values: [(&str, Value); N],
) -> anyhow::Result<()> {
    let values: Mapping = values.into_iter().map(|(key, value)| (key.into(), value)).collect();
    let item =
        Value::Mapping([("name".into(), name.into()), (field.into(), Value::Mapping(values))].into_iter().collect());
    let items = config.entry(list.into()).or_insert(Value::Null);
    if items.is_null() {
        *items = Value::Sequence(Vec::new());
    }
    let items = items.as_sequence_mut().with_context(|| format!("its {list} are not a list"))?;
    match items.iter_mut().find(|known| known.get("name").and_then(Value::as_str) == Some(name)) {
        Some(known) => *known = item,
        None => items.push(item),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, server: &str) -> Entry {
        let text = |what: &str| format!("{what} of {name}");
        Entry {
            name: name.into(),
            server: server.into(),
            ca: text("ca"),
            certificate: text("certificate"),
            key: text("key"),
        }
    }

    fn parse(text: &str) -> Value {
        serde_yaml_ng::from_str(text).unwrap()
    }

    #[test]
    fn a_new_file_is_complete() {
        let config = parse(&merge("", &entry("lab", "https://a:6443")).unwrap());
        assert_eq!((&config["apiVersion"], &config["kind"]), (&"v1".into(), &"Config".into()));
        assert_eq!(config["current-context"], "lab");
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://a:6443");
        assert_eq!(config["contexts"][0]["context"]["user"], "lab");
        let key = config["users"][0]["user"]["client-key-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(key).unwrap(), b"key of lab");
    }

    #[test]
    fn merging_twice_changes_nothing_and_others_stay() {
        let other =
            "kind: Config\nclusters: null\npreferences: {colors: true}\nusers: [{name: other, user: {token: t}}]\n";
        let once = merge(other, &entry("lab", "https://a:6443")).unwrap();
        assert_eq!(merge(&once, &entry("lab", "https://a:6443")).unwrap(), once);
        let moved = parse(&merge(&once, &entry("lab", "https://b:6443")).unwrap());
        assert_eq!(moved["clusters"].as_sequence().unwrap().len(), 1);
        assert_eq!(moved["clusters"][0]["cluster"]["server"], "https://b:6443");
        assert_eq!(moved["users"][0], parse("{name: other, user: {token: t}}"));
        assert_eq!(moved["preferences"], parse("{colors: true}"));
    }

    proptest! {
        #[test]
        fn nothing_of_others_is_lost_whatever_the_names(names in vec("[a-z]{1,3}|true|1|[ -~]{0,8}", 0..6), ours in "[a-z]{1,3}") {
            let item = |name: &String| serde_yaml_ng::to_value(BTreeMap::from([("name", name.as_str()), ("other", "kept")])).unwrap();
            let items: Vec<Value> = names.iter().map(item).collect();
            let known = serde_yaml_ng::to_string(&BTreeMap::from([("users", &items)])).unwrap();
            let merged = parse(&merge(&known, &entry(&ours, "https://a")).unwrap());
            let users = merged["users"].as_sequence().unwrap();
            for item in items.iter().filter(|item| item["name"] != ours.as_str()) {
                prop_assert!(users.contains(item), "{item:?} is lost");
            }
            prop_assert!(users.iter().any(|user| user["name"] == ours.as_str() && user["user"].is_mapping()));
        }

        #[test]
        fn no_text_makes_it_fail_otherwise_than_with_an_error(text in "[ -~\n]{0,80}") {
            if let Ok(merged) = merge(&text, &entry("lab", "https://a")) {
                prop_assert_eq!(&parse(&merged)["current-context"], "lab");
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["[]", "text", "kind: Deployment\n", "kind: Config\nusers: 3\n", "a: [\n"] {
            assert!(merge(text, &entry("lab", "https://a")).is_err(), "{text}");
        }
    }
}
