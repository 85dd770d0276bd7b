//! Which names a disk accepts: relative, `/` between parts, nothing that leads out.

use std::io;

/// Checks the name of a file or directory below the root.
///
/// # Errors
/// `InvalidInput` for an empty name, an absolute one, `.` or `..` as a part, a
/// backslash, a colon (a drive or a stream on Windows) or a NUL.
pub(crate) fn check_name(name: &str) -> io::Result<()> {
    let refused = name.contains(['\\', ':', '\0'])
        || name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if refused {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a name inside the store's directory (relative, no `..`)"),
        ));
    }
    Ok(())
}

/// As [`check_name`], where "" means the root.
///
/// # Errors
/// As [`check_name`].
pub(crate) fn check_dir(dir: &str) -> io::Result<()> {
    if dir.is_empty() { Ok(()) } else { check_name(dir) }
}

/// Splits `a/b/c` into (`a/b`, `c`); the parent of a name without `/` is "".
#[cfg(any(unix, test, feature = "testing"))]
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// `dir/leaf`, or `leaf` in the root.
pub(crate) fn join(dir: &str, leaf: &str) -> String {
    if dir.is_empty() { leaf.to_owned() } else { format!("{dir}/{leaf}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\\b", "c:x", "a\0b"] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn ordinary_names_pass() {
        for name in ["a", "a/b.seg", "..a", "a..b/.tmp-7", "Größe"] {
            check_name(name).unwrap();
        }
        check_dir("").unwrap();
        assert_eq!((split("a/b/c"), split("a")), (("a/b", "c"), ("", "a")));
        assert_eq!((join("", "a"), join("a", "b")), ("a".to_owned(), "a/b".to_owned()));
    }
}
