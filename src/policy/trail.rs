//! Where a path leads, link by link.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

/// As many links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The end of a path, and every directory on the way: who can write to one of these decides where the path leads.
#[derive(Debug)]
pub(crate) struct Trail {
    /// What the path names, itself no link.
    pub(crate) end: PathBuf,
    /// From the root on, those behind links included.
    pub(crate) directories: Vec<PathBuf>,
}

impl Trail {
    /// Follows `path`. What lies at its end is not touched.
    ///
    /// # Errors
    ///
    /// What lstat(2) and readlink(2) say; `ELOOP`.
    pub(crate) fn follow(path: &Path) -> io::Result<Self> {
        let mut left = parts(&std::path::absolute(path)?);
        let mut here = PathBuf::from("/");
        let mut directories = vec![here.clone()];
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                here.pop();
                continue;
            }
            let next = here.join(part);
            let kind = fs::symlink_metadata(&next)?.file_type();
            if kind.is_symlink() {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    left.push_front(part);
                }
                continue;
            }
            if kind.is_dir() && !directories.contains(&next) {
                directories.push(next.clone());
            } else if !kind.is_dir() && !left.is_empty() {
                return Err(Errno::ENOTDIR.into());
            }
            here = next;
        }
        Ok(Self { end: here, directories })
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_directory_that_decides_where_a_path_leads_is_on_the_trail() {
        let root = std::env::temp_dir().join(format!("nsctl-trail-{}", std::process::id()));
        let root_at = |name: &str| root.join(name);
        for directory in ["a", "b/c", "d"] {
            fs::create_dir_all(root_at(directory)).expect("a directory");
        }
        fs::write(root_at("d/file"), "").expect("a file");
        symlink("../b/c/second", root_at("a/first")).expect("a link");
        symlink(root_at("d/file"), root_at("b/c/second")).expect("a link");
        let trail = Trail::follow(&root_at("a/first")).expect("it leads somewhere");
        assert_eq!(trail.end, fs::canonicalize(root_at("d/file")).expect("the witness"));
        let root = fs::canonicalize(&root).expect("it is there");
        for directory in ["a", "b", "b/c", "d"] {
            assert!(trail.directories.contains(&root.join(directory)), "{directory}: {trail:?}");
        }
        assert_eq!(trail.directories[0], Path::new("/"));

        symlink("loop", root_at("loop")).expect("a link");
        assert_eq!(Trail::follow(&root_at("loop")).expect_err("a loop").raw_os_error(), Some(Errno::ELOOP as i32));
        fs::remove_dir_all(root).expect("it is ours");
    }
}
