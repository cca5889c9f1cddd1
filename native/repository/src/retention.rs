//! Which snapshots are kept, forgetting the others, and giving back the room that nothing needs.
//!
//! Pruning has two phases: packs that nothing needs are marked, and a later prune deletes those that have been marked for
//! `keep` and are still not needed. A disk that is open meanwhile finds what was repacked by reading the index again.

use jiff::{Span, Zoned};
use rustic_core::repofile::SnapshotFile;
use rustic_core::{Id, KeepOptions, LimitOption, PruneOptions};

use crate::error::{Error, Kind, Result};
use crate::repository::{Repository, describe};
use crate::store::Area;

/// What becomes of a snapshot, and the rules that keep it.
pub struct Verdict {
    pub id: Id,
    pub kept: bool,
    pub reasons: Vec<String>,
}

/// What a prune did or, when it was only planned, would do. Bytes of packs.
pub struct Pruned {
    /// Needed by nothing, deleted by a later prune.
    pub marked: u64,
    /// Marked by an earlier prune and deleted now.
    pub deleted: u64,
    /// Written anew without what nothing needs.
    pub repacked: u64,
}

impl Repository {
    /// Apply retention rules to the snapshots of one machine. `rules` is JSON in the words of `KeepOptions`.
    pub fn retention(&self, ids: &[Id], rules: &str) -> Result<Vec<Verdict>> {
        let rules: KeepOptions = serde_json::from_str(rules)
            .map_err(|error| Error::new(Kind::Usage, format!("the retention rules are malformed: {error}")))?;
        let snapshots = ids
            .iter()
            .map(|id| {
                let mut file: SnapshotFile = self.snapshot(id)?;
                file.id = (*id).into();
                Ok(file)
            })
            .collect::<Result<Vec<_>>>()?;
        let verdicts = rules
            .apply(snapshots, &Zoned::now())
            .map_err(|_| Error::new(Kind::Usage, "no retention rule keeps anything").hint("give at least one"))?;
        Ok(verdicts
            .into_iter()
            .map(|each| Verdict { id: *each.snapshot.id, kept: each.keep, reasons: each.reasons })
            .collect())
    }

    fn must_not_be_append_only(&self) -> Result<()> {
        if self.is_append_only() {
            return Err(Error::new(Kind::Denied, format!("{} is append-only", describe(&*self.store))).hint(
                "nothing that was written to it is ever removed; to end that, make a new one and `livemount copy`",
            ));
        }
        Ok(())
    }

    /// Delete snapshots; what they alone need stays until it is pruned.
    pub fn forget(&self, ids: &[Id]) -> Result<()> {
        self.must_not_be_append_only()?;
        for id in ids {
            self.store.remove(Area::Snapshot, id)?;
        }
        Ok(())
    }

    /// Mark and delete packs. `max_unused` is the part of the repository, in per cent, that may stay unused in packs that
    /// hold something needed; `keep` the seconds for which a marked pack stays.
    pub fn prune(&self, plan_only: bool, max_unused: u64, keep: i64) -> Result<Pruned> {
        self.must_not_be_append_only()?;
        let fail = |error: Box<rustic_core::RusticError>| Error::rustic(&describe(&*self.store), &error);
        let mut options = PruneOptions::default();
        options.max_unused = LimitOption::Percentage(max_unused);
        options.max_repack = LimitOption::Unlimited;
        options.keep_delete = Span::new()
            .try_seconds(keep)
            .map_err(|_| Error::new(Kind::Usage, format!("marked packs cannot be kept for {keep} s")))?;
        if let Some(damage) = self.snapshots()?.bad.into_iter().next() {
            // What it needs is not known.
            return Err(damage.hint("without this snapshot nothing can be pruned; `restic repair snapshots` helps"));
        }
        let plan = self.inner.prune_plan(&options).map_err(fail)?;
        let sizes = plan.stats.size_sum();
        let pruned = Pruned {
            marked: sizes.remove + sizes.repackrm,
            deleted: plan.stats.size_to_delete.remove,
            repacked: sizes.repack - sizes.repackrm,
        };
        if !plan_only {
            self.store.remove_stale()?;
            self.inner.prune(&options, plan).map_err(fail)?;
        }
        Ok(pruned)
    }
}
