//! A timeline's history that is gone, from those of timelines that come from it.

use std::collections::BTreeMap;

use walpoint_base::{TimelineHistory, TimelineId, WalFileName};
use walpoint_plan::graph::contradictions;
use walpoint_storage::error::{RepoError, Result};

use super::WalArchive;

impl WalArchive {
    /// The lines of a timeline's history that is not there, from a younger timeline that comes from it: PostgreSQL copies them,
    /// and adds one that names the timeline. `None` if no younger one does, or if younger ones contradict each other: then one of
    /// them comes from another server's timeline of that number. So does one that contradicts any other ancestor's own history: it
    /// tells nothing. One listing, and one request for each history.
    pub async fn history_from_younger(&self, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
        let (mut histories, mut contents) = (BTreeMap::new(), BTreeMap::new());
        for id in self.histories().await?.into_iter().filter(|id| *id != timeline) {
            match self.parsed(id).await {
                Ok(Some((history, content))) => {
                    contents.insert(id, content);
                    histories.insert(id, history);
                }
                Ok(None) => {}
                // What cannot be read says nothing.
                Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let of_others = contradictions(&histories);
        let mut found: Option<(Vec<u8>, TimelineHistory)> = None;
        let younger = histories.into_iter().filter(|(id, _)| *id > timeline && !of_others.contains_key(id));
        for (id, history) in younger {
            if found.as_ref().is_some_and(|(_, found)| history.contradicts(found)) {
                return Ok(None);
            }
            let Some(own) = history.of_ancestor(timeline).filter(|_| found.is_none()) else { continue };
            let Some(content) = contents.remove(&id).and_then(|content| before(content, &own)) else {
                continue;
            };
            found = Some((content, own));
        }
        Ok(found.map(|(content, _)| content))
    }

    async fn parsed(&self, timeline: TimelineId) -> Result<Option<(TimelineHistory, Vec<u8>)>> {
        let Some(file) = self.get(WalFileName::History(timeline)).await? else { return Ok(None) };
        let key = self.paths().file(WalFileName::History(timeline));
        let history =
            TimelineHistory::parse(timeline, &file.content).map_err(|e| RepoError::corrupt(&key, e))?;
        Ok(Some((history, file.content)))
    }
}

/// The lines of a history before those of one of its ancestors, whose history that is.
fn before(mut content: Vec<u8>, own: &TimelineHistory) -> Option<Vec<u8>> {
    let names = |line: &[u8]| {
        let id = line.trim_ascii_start().split(u8::is_ascii_whitespace).next();
        id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok()) == Some(own.timeline().get())
    };
    let lines = content.split_inclusive(|byte| *byte == b'\n').take_while(|line| !names(line));
    let length = lines.map(<[u8]>::len).sum();
    content.truncate(length);
    // Cut anywhere else, it would tell another story.
    TimelineHistory::parse(own.timeline(), &content).is_ok_and(|cut| cut == *own).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::bed;

    #[tokio::test]
    async fn a_lost_history_is_not_what_another_servers_timeline_says() {
        let bed = bed().await;
        let tli = |id| TimelineId::new(id).unwrap();
        let put = async |id, text: &str| {
            bed.archive.put_file(WalFileName::History(tli(id)), text.as_bytes().to_vec()).await.unwrap();
        };
        let lost = async || bed.archive.history_from_younger(tli(3)).await.unwrap();
        put(2, "1\t0/200000\tx\n").await;
        put(4, "1\t0/400000\tx\n2\t0/600000\ty\n3\t0/700000\tz\n").await;
        assert_eq!(lost().await, None, "timeline 4 comes from another timeline 2");
        let own = "1\t0/200000\tx\n2\t0/500000\ty\n";
        put(5, &format!("{own}3\t0/800000\tz\n")).await;
        assert_eq!(lost().await.as_deref(), Some(own.as_bytes()));
        put(6, "1\t0/200000\tx\n2\t0/500008\ty\n3\t0/800000\tz\n").await;
        assert_eq!(lost().await, None, "they contradict each other");
    }
}
