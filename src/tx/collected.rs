//! What a request has begun, taken out of its registry to be settled.

use super::lent::Taken;
use super::live::LiveEntry;
use super::outstanding::{Entry, Lending};
use super::resource::Resource;

/// Everything that a request had joined and that nobody holds.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) resources: Vec<Box<dyn Resource>>,
    pub(super) lines: Vec<LiveEntry>,
}

impl Collected {
    /// Takes what can be taken; returns what is still checked out.
    pub(super) fn take(&mut self, entries: Vec<Entry>) -> Vec<Lending> {
        let mut held = Vec::new();
        for entry in entries {
            match entry {
                Entry::Resource(resource, line) => {
                    self.resources.push(resource);
                    self.lines.push(line);
                }
                Entry::Database(lending) => match lending.loan.take() {
                    Taken::Resource(resource) => self.resources.push(resource),
                    Taken::Nothing => {}
                    Taken::CheckedOut => held.push(lending),
                },
            }
        }
        held
    }
}
