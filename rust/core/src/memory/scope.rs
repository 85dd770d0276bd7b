//! Whose memories a call is about.

use crate::error::{Error, Result};

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// The user, and optionally a part of the user's memories: every call has one.
///
/// A scope that is written to is where the memory is from then on. A scope that is read
/// *covers* a memory of the same user when each part that the scope names is the memory's:
/// a scope of a user alone covers all of the user's, one of a project those of that project
/// and no others, also not those of no project.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    user: String,
    names: Names,
}

/// The parts of a scope below the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Names {
    /// The agent.
    pub agent: Option<String>,
    /// The project.
    pub project: Option<String>,
    /// The session; its memories are neighbours of each other.
    pub session: Option<String>,
}

impl Scope {
    /// All memories of a user.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty, longer than 1,024 bytes, or has a NUL.
    pub fn user(user: impl Into<String>) -> Result<Self> {
        Self::new(user, Names::default())
    }

    /// A part of a user's memories.
    ///
    /// # Errors
    /// As [`Scope::user`], for any of the names.
    pub fn new(user: impl Into<String>, names: Names) -> Result<Self> {
        let user = user.into();
        check("user", &user)?;
        for (what, name) in
            [("agent", &names.agent), ("project", &names.project), ("session", &names.session)]
        {
            if let Some(name) = name {
                check(what, name)?;
            }
        }
        Ok(Self { user, names })
    }

    /// The user.
    pub fn user_name(&self) -> &str {
        &self.user
    }

    /// The parts below.
    pub const fn names(&self) -> &Names {
        &self.names
    }
}

impl Names {
    /// Whether each name that is given here is the other's.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let covers = |mine: &Option<String>, theirs: &Option<String>| mine.is_none() || mine == theirs;
        covers(&self.agent, &other.agent)
            && covers(&self.project, &other.project)
            && covers(&self.session, &other.session)
    }
}

fn check(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        let shown: String = name.chars().take(40).collect();
        return Err(Error::Invalid(format!(
            "{what}={shown:?}: a name has 1 to {NAME_BYTES_MAX} bytes and no NUL"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_it_names() {
        let names = |project: Option<&str>| Names { project: project.map(Into::into), ..Names::default() };
        assert!(names(None).covers(&names(Some("shop"))));
        assert!(names(Some("shop")).covers(&names(Some("shop"))));
        assert!(!names(Some("shop")).covers(&names(Some("blog"))));
        assert!(!names(Some("shop")).covers(&names(None)));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a\0b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let message = Scope::user(name).unwrap_err().to_string();
            assert!(message.contains("1 to 1024 bytes"), "{message}");
        }
        let names = Names { agent: Some(String::new()), ..Names::default() };
        assert!(Scope::new("ana", names).unwrap_err().to_string().contains("agent="));
    }
}
