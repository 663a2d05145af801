//! Who can change a policy without being asked: by writing to a file, or by putting another one in its place.
//!
//! Whoever can edit the policy of a machine decides what its services may reach, and `apply` runs as root.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::shown;
use crate::trusted::{Trusted, Who};

/// A way in which others can change the policy.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Editable {
    /// By replacing the file, or one like it.
    #[error("{who} can put another file in the place of {}: {} {is}", shown(path), shown(directory))]
    Directory {
        /// The directory in which it can be done.
        directory: PathBuf,
        /// The file.
        path: PathBuf,
        /// Who.
        who: Who,
        /// What the directory is, that they can.
        is: Why,
    },
    /// By adding a file to a directory of policies.
    #[error("{who} can put a policy into {}, which {is}", shown(directory))]
    Listed {
        /// The directory.
        directory: PathBuf,
        /// Who.
        who: Who,
        /// What it is, that they can.
        is: Why,
    },
    /// By being its owner.
    #[error("{} is owned by uid {uid}, who can edit it", shown(path))]
    Owner {
        /// The file.
        path: PathBuf,
        /// The owner.
        uid: u32,
    },
    /// By writing to it.
    #[error("{who} can edit {} (mode {mode:04o})", shown(path))]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Who.
        who: Who,
    },
}

/// What makes a directory open to somebody.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// Its mode.
    Mode(u32),
    /// Its owner.
    Owned,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => write!(f, "has mode {mode:04o}"),
            Self::Owned => f.write_str("is theirs"),
        }
    }
}

impl Editable {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Mode { .. } => "E0004",
            Self::Owner { .. } => "E0005",
            Self::Directory { .. } | Self::Listed { .. } => "E0006",
        }
    }

    /// The file it is about, or the directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory { directory, .. } | Self::Listed { directory, .. } => directory,
            Self::Mode { path, .. } | Self::Owner { path, .. } => path,
        }
    }

    /// The next move.
    pub fn help(&self) -> String {
        let path = quoted(self.path());
        match self {
            Self::Mode { .. } => format!("chmod go-w {path}"),
            Self::Owner { .. } => format!("chown root {path}, or let its owner run this by sudo"),
            Self::Directory { is: Why::Mode(_), .. } | Self::Listed { is: Why::Mode(_), .. } => {
                format!("chmod go-w {path}, or keep the policy elsewhere")
            }
            Self::Directory { is: Why::Owned, .. } | Self::Listed { is: Why::Owned, .. } => {
                format!("chown root {path}, or keep the policy elsewhere")
            }
        }
    }
}

/// The path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = shown(path);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@:,".contains(&b);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Who else can change a file, being what it is.
pub(crate) fn of_file(trusted: &Trusted, path: &Path, is: &Metadata) -> Option<Editable> {
    let (path, mode) = (path.to_owned(), is.mode() & 0o7777);
    if !trusted.trusts(is.uid()) {
        return Some(Editable::Owner { path, uid: is.uid() });
    }
    trusted.writer(is).map(|who| Editable::Mode { path, mode, who })
}

/// Who else can put another file in the place of `path` by way of one of these directories. In a sticky one only the
/// owner of a file can do that (unlink(2)); in the one that is `listed` a file more counts as well.
pub(crate) fn of_directories(trusted: &Trusted, path: &Path, all: &[PathBuf], listed: Option<&Path>) -> Vec<Editable> {
    let one = |directory: &PathBuf| {
        let is = fs::symlink_metadata(directory).ok()?;
        let sticky = is.mode() & 0o1000 != 0 && listed != Some(directory);
        let (who, is) = match trusted.trusts(is.uid()) {
            false => (Who::User(is.uid()), Why::Owned),
            true if sticky => return None,
            true => (trusted.writer(&is)?, Why::Mode(is.mode() & 0o7777)),
        };
        let (directory, path) = (directory.clone(), path.to_owned());
        Some(match listed == Some(&directory) {
            true => Editable::Listed { directory, who, is },
            false => Editable::Directory { directory, path, who, is },
        })
    };
    all.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use nix::unistd::geteuid;

    use super::*;

    /// What is said of a file of ours with that mode, when these are trusted.
    fn said(mode: u32, trusted: &Trusted) -> Option<Editable> {
        let path = std::env::temp_dir().join(format!("nsctl-editors-{}-{mode:o}", std::process::id()));
        fs::write(&path, "").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        let said = of_file(trusted, &path, &fs::metadata(&path).expect("it is there"));
        fs::remove_file(&path).expect("it is ours");
        said
    }

    #[test]
    fn a_file_is_its_owner_s_and_nobody_else_s() {
        let ours = Trusted { users: vec![geteuid().as_raw()], outside: None };
        for fine in [0o600, 0o644, 0o444, 0o755] {
            assert_eq!(said(fine, &ours), None, "{fine:o}");
        }
        assert!(matches!(said(0o666, &ours), Some(Editable::Mode { mode: 0o666, who: Who::Anybody, .. })));
        assert!(matches!(said(0o602, &ours), Some(Editable::Mode { who: Who::Anybody, .. })));
        let others = Trusted { users: vec![geteuid().as_raw() + 1], outside: None };
        assert!(matches!(said(0o600, &others), Some(Editable::Owner { .. })));
        let inside = Trusted { users: vec![], outside: Some(geteuid().as_raw()) };
        assert_eq!(said(0o600, &inside), None, "who is outside of this user namespace is the machine");
    }

    #[test]
    fn a_sticky_directory_keeps_files_but_lets_others_come() {
        let directory = std::env::temp_dir().join(format!("nsctl-editors-{}-sticky", std::process::id()));
        fs::create_dir(&directory).expect("it is new");
        let ours = Trusted { users: vec![geteuid().as_raw()], outside: None };
        let all = [directory.clone()];
        let file = directory.join("policy.toml");
        for (mode, in_it, listed) in [(0o755, 0, 0), (0o1777, 0, 1), (0o777, 1, 1)] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(of_directories(&ours, &file, &all, None).len(), in_it, "{mode:o}");
            assert_eq!(of_directories(&ours, &file, &all, Some(&directory)).len(), listed, "{mode:o}");
        }
        fs::remove_dir(directory).expect("it is empty");
    }

    #[test]
    fn a_path_is_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/etc/a.toml")), "/etc/a.toml");
        assert_eq!(quoted(Path::new("it's here")), r"'it'\''s here'");
    }
}
