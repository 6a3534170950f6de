//! Results of work on a text, kept for as long as the text is the same.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use ring::digest::{SHA256, digest};

/// One result per key. Looking at certificates is arithmetic on curves, and the agent looks at all of them whenever
/// anything changes on the machine.
pub(super) struct Memo<K, V>(Mutex<BTreeMap<K, (Vec<u8>, V)>>);

impl<K: Ord, V: Clone> Memo<K, V> {
    /// The result of `work` on `text`, from before if the text was the same. Failures are not kept.
    pub(super) fn get<E>(&self, key: K, text: &[&str], work: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let digests: Vec<u8> =
            text.iter().flat_map(|part| digest(&SHA256, part.as_bytes()).as_ref().to_vec()).collect();
        let mut results = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, result)) = results.get(&key)
            && *known == digests
        {
            return Ok(result.clone());
        }
        let result = work()?;
        results.insert(key, (digests, result.clone()));
        Ok(result)
    }
}

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, V> fmt::Debug for Memo<K, V> {
    /// Shows nothing: the results hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}
