//! A look into files, and a change of those through which a kernel is told something.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use memchr::memmem::Finder;

use crate::Outcome;

/// Prints a file.
pub fn cat(path: &str) -> Outcome {
    let content = fs::read(path).map_err(|error| format!("reading {path}: {error}"))?;
    std::io::stdout().write_all(&content).map_err(|error| format!("printing {path}: {error}"))
}

/// Prints how often a text is in the regular files of a folder and of those below it.
pub fn count(text: &str, folder: &str) -> Outcome {
    println!("{}", occurrences(&Finder::new(text), Path::new(folder))?);
    Ok(())
}

fn occurrences(text: &Finder, path: &Path) -> Result<usize, String> {
    let failed = |error: io::Error| format!("reading {}: {error}", path.display());
    let kind = fs::symlink_metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        let entries = fs::read_dir(path).map_err(failed)?;
        entries.map(|entry| occurrences(text, &entry.map_err(failed)?.path())).sum()
    } else if kind.is_file() {
        Ok(text.find_iter(&fs::read(path).map_err(failed)?).count())
    } else {
        Ok(0)
    }
}

/// Writes a text to a file; one that is not there is not made.
pub fn write(path: &str, text: &str) -> Outcome {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("writing {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_counted_in_all_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("one"), "ab ab").unwrap();
        fs::write(folder.path().join("below/two"), "abc").unwrap();
        let counted = ["ab", "abc", "abcd"].map(|text| occurrences(&Finder::new(text), folder.path()));
        assert_eq!(counted, [Ok(3), Ok(1), Ok(0)]);
    }
}
