//! What happens to a server alone: crashes, a second daemon, a tablespace.

use rand::Rng;

use crate::histories::load;
use crate::histories::oracle::Effect;
use crate::histories::world::{Outcome, World};

use super::Prepared;

impl World {
    pub(super) fn open_prepared(&mut self, prepared: Prepared) {
        if prepared == Prepared::Open {
            let number = self.number();
            let server = &mut self.servers[self.primary];
            load::prepare(server, &mut self.branches[server.branch], number);
            self.note(format!("p{number} stays prepared"));
        }
    }

    pub(super) fn crash_restart(&mut self) -> Outcome<()> {
        let with_daemon = self.rng.random_bool(0.5);
        let server = &mut self.servers[self.primary];
        if with_daemon {
            server.crash()
        } else {
            server.crash_server()
        }
        server.start_daemon();
        server.cluster.start();
        let branch = &self.branches[server.branch];
        let expected = branch.state(branch.events.len());
        let state = server.state()?;
        assert_eq!(state, expected, "PostgreSQL or the oracle lost rows in a crash");
        let name = server.name();
        self.note(format!("{name} crashed (its daemon too: {with_daemon}) and starts again"));
        Ok(())
    }

    pub(super) fn two_daemons(&mut self) -> Outcome<()> {
        let other = crate::agent::Agent::with(&self.servers[self.primary].cluster, &self.store);
        let daemon = other.daemon();
        self.note("a second daemon looks after the same data directory");
        self.load(6);
        self.drain()?;
        if self.rng.random_bool(0.5) {
            let server = &mut self.servers[self.primary];
            server.kill_daemon();
            self.note("the first daemon is killed");
            self.load(3);
            self.servers[self.primary].start_daemon();
        }
        daemon.kill();
        Ok(())
    }

    /// Creates a tablespace and a table in it.
    pub(super) fn tablespace(&mut self, maybe_inside: bool) -> Outcome<()> {
        let number = self.number();
        let inside = maybe_inside && self.rng.random_bool(0.5);
        let location = if inside {
            self.in_place = true;
            String::new()
        } else {
            let place = self.dir.mkdir(format!("space-{number}"));
            self.spaces.push(place.clone());
            place.display().to_string()
        };
        let prefix = if inside { "set allow_in_place_tablespaces = on; " } else { "" };
        self.happen(&format!("{prefix}create tablespace s{number} location '{location}'"), Effect::Ended);
        let sql = format!(
            "begin; create table t{number} () inherits (ledger) tablespace s{number}; \
             create index on t{number} (number) tablespace s{number}; \
             insert into t{number} (number, pad) select {number}, 'in s{number}' from generate_series(1, 50); commit"
        );
        self.happen(&sql, Effect::Commit { added: (number, 50), removed: Vec::new() });
        Ok(())
    }
}
