//! The names of a memory disk in their two images.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::inode::Content;
use super::random::Seeded;
use crate::io::names::split;

/// A file's content, shared by its names and its open handles.
pub(super) struct Inode {
    content: Mutex<Content>,
}

impl Inode {
    pub(super) fn new(content: Content) -> Arc<Self> {
        Arc::new(Self { content: Mutex::new(content) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Node {
    Dir,
    File(Arc<Inode>),
}

/// A change of names that no `sync_dir` has made durable yet. All or nothing.
#[derive(Clone)]
struct Change {
    unset: Option<String>,
    set: Option<(String, Node)>,
}

impl Change {
    fn touches(&self, dir: &str) -> bool {
        let set = self.set.as_ref().map(|(name, _)| name);
        self.unset.iter().chain(set).any(|name| split(name).0 == dir)
    }

    fn apply(&self, image: &mut BTreeMap<String, Node>) {
        if let Some(name) = &self.unset {
            image.remove(name);
        }
        if let Some((name, node)) = &self.set {
            image.insert(name.clone(), node.clone());
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Names {
    live: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    pending: Vec<Change>,
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        self.live.get(name)
    }

    pub(super) fn file(&self, name: &str) -> io::Result<&Arc<Inode>> {
        match self.live.get(name) {
            Some(Node::File(inode)) => Ok(inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn require_dir(&self, dir: &str) -> io::Result<()> {
        match self.live.get(dir) {
            _ if dir.is_empty() => Ok(()),
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The names directly inside `dir`, sorted.
    pub(super) fn inside<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.live.iter().filter(move |(name, _)| split(name).0 == dir)
    }

    /// Every file that has a name.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.live.values().filter_map(|node| match node {
            Node::File(inode) => Some(inode),
            Node::Dir => None,
        })
    }

    pub(super) fn set(&mut self, name: &str, node: Node) {
        self.change(Change { unset: None, set: Some((name.to_owned(), node)) });
    }

    pub(super) fn unset(&mut self, name: &str) {
        self.change(Change { unset: Some(name.to_owned()), set: None });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, node: Node) {
        self.change(Change { unset: Some(from.to_owned()), set: Some((to.to_owned(), node)) });
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    pub(super) fn sync_dir(&mut self, dir: &str) {
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let done = change.touches(dir);
            if done {
                change.apply(durable);
            }
            !done
        });
    }

    /// What is found after power loss: the durable names, and any subset of the pending
    /// changes. A name whose directory was lost is lost with it.
    pub(super) fn after_crash(&self, random: &mut Seeded) -> Self {
        let mut found = self.durable.clone();
        for change in &self.pending {
            if random.one_in(2) {
                change.apply(&mut found);
            }
        }
        let dirs: BTreeSet<String> = found
            .iter()
            .filter(|(_, node)| matches!(node, Node::Dir))
            .map(|(name, _)| name.clone())
            .collect();
        found.retain(|name, _| {
            std::iter::successors(parent(name), |&dir| parent(dir)).all(|dir| dirs.contains(dir))
        });

        // Two names may share a file (a rename of which only half is to be seen is not
        // among the outcomes, but a name that was set twice is): its fate is decided once.
        let mut fates: Vec<(Arc<Inode>, Arc<Inode>)> = Vec::new();
        for node in found.values_mut() {
            if let Node::File(inode) = node {
                let known = fates
                    .iter()
                    .find(|(before, _)| Arc::ptr_eq(before, inode))
                    .map(|(_, after)| Arc::clone(after));
                let after = known.unwrap_or_else(|| {
                    let after = Inode::new(inode.lock().after_crash(random));
                    fates.push((Arc::clone(inode), Arc::clone(&after)));
                    after
                });
                *inode = after;
            }
        }
        Self { live: found.clone(), durable: found, pending: Vec::new() }
    }
}

/// The directory that holds `name`, if it is not the root.
fn parent(name: &str) -> Option<&str> {
    Some(split(name).0).filter(|dir| !dir.is_empty())
}
