//! The role of least privilege can do everything, another one nothing, and each refusal names the statement that helps.

use walpoint_base::PgMajor;
use walpoint_pg::server::{BackupSession, Server, ServerError, Walsender, least_privilege_sql};
use walpoint_tests::cluster::Cluster;

use crate::settings;

async fn as_role(cluster: &Cluster, role: &str) -> Server {
    Server::connect(&info(cluster, role)).await.expect("a session")
}

fn info(cluster: &Cluster, role: &str) -> walpoint_pg::connect::ConnInfo {
    settings(&format!("host={} user={role} dbname=postgres", cluster.socket_dir().display()))
}

/// The statement that a refusal names.
fn grant<T: std::fmt::Debug>(result: Result<T, ServerError>, action: &str) -> String {
    match result {
        Err(error @ ServerError::Rights { .. }) => {
            let text = error.to_string();
            let ServerError::Rights { grant, .. } = error else { unreachable!() };
            assert!(
                text.contains(action) && text.contains("no\"rights") && text.contains("\"postgres\""),
                "{text}"
            );
            assert!(text.contains(&grant), "{text}");
            grant
        }
        other => panic!("{action}: {other:?}"),
    }
}

#[tokio::test]
async fn the_least_privileged_role_can_do_what_is_needed_and_every_refusal_names_its_remedy() {
    for major in walpoint_tests::testbed::MAJORS {
        let cluster = Cluster::builder().major(major).start();
        let sql = least_privilege_sql("wal point", PgMajor::new(major).unwrap());
        cluster.psql(&sql);
        cluster.psql(&sql);
        let role = "'wal point'";
        let mut server = as_role(&cluster, role).await;
        assert_eq!(server.identity().await.unwrap().system_id.0, cluster.system_id());
        server.archive_settings().await.unwrap();
        server.config_files().await.unwrap();
        server.archiver_stats().await.unwrap();
        server.create_restore_point("p").await.unwrap();
        server.switch_wal().await.unwrap();
        BackupSession::start(server, "label", true).await.unwrap().stop().await.unwrap();
        Walsender::connect(&info(&cluster, role)).await.unwrap().identify_system().await.unwrap();

        cluster.psql("create role \"no\"\"rights\" login");
        let role = "'no\"rights'";
        let remedies = [
            grant(as_role(&cluster, role).await.identity().await, "identity"),
            grant(as_role(&cluster, role).await.create_restore_point("p").await, "restore point"),
            grant(as_role(&cluster, role).await.switch_wal().await, "segment"),
            grant(BackupSession::start(as_role(&cluster, role).await, "l", true).await, "starting a backup"),
            grant(Walsender::connect(&info(&cluster, role)).await.map(drop), "replication"),
        ];
        remedies.iter().for_each(|sql| drop(cluster.psql(sql)));
        let mut server = as_role(&cluster, role).await;
        server.identity().await.unwrap();
        server.create_restore_point("p").await.unwrap();
        server.switch_wal().await.unwrap();
        let backup = BackupSession::start(server, "l", true).await.unwrap();
        cluster.psql(&grant(backup.stop().await, "ending the backup"));
        let server = as_role(&cluster, role).await;
        BackupSession::start(server, "l", true).await.unwrap().stop().await.unwrap();
        Walsender::connect(&info(&cluster, role)).await.unwrap();
    }
}
