//! Whether a snapshot of etcd knows a machine: one that has joined since would take the store made of it for one that it was deleted
//! from, and leave.

use memchr::memmem;

/// Looks for the object of a machine in a snapshot, piece by piece.
#[derive(Debug)]
pub(super) struct Search {
    sought: Vec<u8>,
    /// The last bytes so far, in which it may begin.
    tail: Vec<u8>,
    found: bool,
}

impl Search {
    /// A search for the Machine of that name.
    pub(super) fn new(machine: &str) -> Self {
        let key = format!("/registry/garboard.dev/machines/{machine}");
        // The key as etcd keeps it with its value: a field with its length (etcd: `mvccpb.KeyValue`).
        let length = u8::try_from(key.len()).unwrap_or(u8::MAX);
        Self { sought: [&[0x0a, length], key.as_bytes()].concat(), tail: Vec::new(), found: false }
    }

    /// Takes the next piece.
    pub(super) fn update(&mut self, piece: &[u8]) {
        if self.found {
            return;
        }
        self.tail.extend_from_slice(piece);
        self.found = memmem::find(&self.tail, &self.sought).is_some();
        self.tail.drain(..self.tail.len().saturating_sub(self.sought.len()));
    }

    /// Whether it was there.
    pub(super) fn found(&self) -> bool {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_its_whole_name_in_any_pieces() {
        let key = b"/registry/garboard.dev/machines/node-1";
        let value = |key: &[u8]| [&[7; 900], &[0x0a, key.len() as u8][..], key, &[0x10, 3]].concat();
        for size in [1, 7, 40, 1000] {
            let mut search = Search::new("node-1");
            value(key).chunks(size).for_each(|piece| search.update(piece));
            assert!(search.found(), "in pieces of {size}");
        }
        let mut search = Search::new("node-1");
        search.update(&value(b"/registry/garboard.dev/machines/node-10"));
        assert!(!search.found());
    }
}
