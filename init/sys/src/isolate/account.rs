//! Users and groups by name, from `/etc/passwd` (passwd(5)) and `/etc/group` (group(5)). The image's users are static files, so no name
//! service is asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A user or group could not be found.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No such user.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {0:?}")]
    NoGroup(String),
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// The primary group's number.
    pub gid: u32,
    /// Numbers of further groups.
    pub groups: Vec<u32>,
}

impl Account {
    /// The superuser without further groups.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new() };
}

/// The texts of the two files.
#[derive(Clone, Debug)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both files from a directory, usually `/etc`.
    ///
    /// # Errors
    /// [`AccountError::Read`].
    pub fn load(directory: &Path) -> Result<Self, AccountError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|source| AccountError::Read { path, source })
        };
        Ok(Self { passwd: read("passwd")?, group: read("group")? })
    }

    /// Makes the two files' content from their texts.
    pub fn from_texts(passwd: impl Into<String>, group: impl Into<String>) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// A user with its primary group and, besides, the groups named.
    ///
    /// # Errors
    /// [`AccountError::NoUser`] and [`AccountError::NoGroup`].
    pub fn account<G: AsRef<str>>(&self, user: &str, groups: &[G]) -> Result<Account, AccountError> {
        let (uid, gid) = self.user(user)?;
        let groups = groups.iter().map(|name| self.group(name.as_ref())).collect::<Result<_, _>>()?;
        Ok(Account { uid, gid, groups })
    }

    /// Numbers of a user and its primary group.
    ///
    /// # Errors
    /// [`AccountError::NoUser`].
    pub fn user(&self, name: &str) -> Result<(u32, u32), AccountError> {
        let found = self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some((uid, gid))
        });
        found.filter(|_| !name.is_empty()).ok_or_else(|| AccountError::NoUser(name.to_owned()))
    }

    /// Number of a group.
    ///
    /// # Errors
    /// [`AccountError::NoGroup`].
    pub fn group(&self, name: &str) -> Result<u32, AccountError> {
        let found = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            fields.nth(1)?.parse().ok()
        });
        found.filter(|_| !name.is_empty()).ok_or_else(|| AccountError::NoGroup(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::from_texts(
            "root:x:0:0:root:/root:/none\netcd:x:201:202::/:/none\nbroken:x\n:x:5:5::/:/\n",
            "root:x:0:\nmessagebus:x:206:dns\nbad:x:many:\n",
        )
    }

    #[test]
    fn names_become_numbers() {
        let found = accounts().account("etcd", &["messagebus", "root"]).unwrap();
        assert_eq!(found, Account { uid: 201, gid: 202, groups: vec![206, 0] });
    }

    #[test]
    fn unknown_and_broken_entries_are_refused() {
        for name in ["", "etc", "etcd2", "broken", "x"] {
            assert!(matches!(accounts().user(name), Err(AccountError::NoUser(_))), "{name:?}");
        }
        for name in ["", "bad", "dns"] {
            assert!(matches!(accounts().group(name), Err(AccountError::NoGroup(_))), "{name:?}");
        }
    }
}
