use std::io::Write;

use proptest::prelude::*;

use super::*;

fn environment() -> Environment {
    Environment::empty().with_os_user("os")
}

fn read(text: &str) -> ConnInfo {
    ConnInfo::parse_in(text, &environment()).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

fn refusal(text: &str) -> String {
    ConnInfo::parse_in(text, &environment()).expect_err(text).to_string()
}

#[test]
fn defaults() {
    let info = read("");
    assert_eq!((info.user(), info.database(), info.ssl_mode()), ("os", "os", SslMode::Prefer));
    assert_eq!(info.hosts(), [Host { place: ServerAddress::DefaultSocket, port: 5432 }]);
    assert_eq!(info.connect_timeout, Some(CONNECT_TIMEOUT));
    assert_eq!((info.application_name.as_str(), info.replication), ("walpoint", Replication::Off));
    assert_eq!((info.target, info.channel_binding), (SessionTarget::Any, ChannelBinding::Prefer));
    assert!(matches!(ConnInfo::parse_in("", &Environment::empty()), Err(SettingsError::NoUser)));
}

#[test]
fn what_the_string_says_beats_the_service_and_that_the_environment() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[s]\nhost=service\nport=1\ndbname=service").unwrap();
    let path = file.path().display().to_string();
    let environment = environment().with("PGHOST", "env").with("PGUSER", "env").with("PGDATABASE", "env");
    let environment = environment.with("PGSERVICEFILE", path).with("PGPASSWORD", "env");
    let info = ConnInfo::parse_in("service=s port=2", &environment).unwrap();
    assert_eq!(info.to_string(), "env@service:2/service");
    let info = ConnInfo::parse_in("port=3", &environment.clone().with("PGSERVICE", "s")).unwrap();
    assert_eq!(info.to_string(), "env@service:3/service");
    let info = ConnInfo::parse_in("", &environment).unwrap();
    assert_eq!(info.to_string(), "env@env:5432/env");
    let error = ConnInfo::parse_in("service=none", &environment).unwrap_err().to_string();
    assert!(error.contains("\"none\""), "{error}");
    let error =
        ConnInfo::parse_in("service=s servicefile=/nonexistent", &environment).unwrap_err().to_string();
    assert!(error.contains("/nonexistent"), "{error}");
}

#[test]
fn settings_of_several_servers_can_lead_to_one_of_them() {
    let environment = environment().with("PGHOST", "env").with("PGHOSTADDR", "10.9.9.9").with("PGPORT", "9");
    for (text, user, options) in [
        (r"host=a,b port=1,2 user='it\'s \\ me' hostaddr=10.0.0.1,10.0.0.2".to_owned(), r"it's \ me", None),
        ("postgresql://u@a:1,b:2/d?options=-c%20x%3D1".to_owned(), "u", Some("-c x=1")),
        (String::new(), "os", None),
    ] {
        for host in ["b", "/run/b", "@b"] {
            let place = host::hosts(host, "", "2").unwrap().remove(0);
            let led = ConnInfo::text_at(&text, &place).unwrap();
            let info = ConnInfo::parse_in(&led, &environment).unwrap_or_else(|e| panic!("{led}: {e}"));
            assert_eq!(info.hosts(), std::slice::from_ref(&place), "{led}");
            assert_eq!((info.user(), info.options.as_deref()), (user, options), "{led}");
            assert_eq!(read(&text).at(place.clone()).hosts(), [place]);
        }
        let place = host::hosts("b", "10.0.0.2", "2").unwrap().remove(0);
        let led = ConnInfo::text_at(&text, &place).unwrap();
        assert_eq!(ConnInfo::parse_in(&led, &environment).unwrap().hosts(), [place], "{led}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (text, expected) in [
        ("hots=x", "hots"),
        ("sslmode=on", "sslmode"),
        ("gssencmode=require", "disable or prefer"),
        ("requirepeer=postgres", "requirepeer"),
        ("sslcrldir=/x", "sslcrldir"),
        ("sslcertmode=require", "sslcertmode"),
        ("connect_timeout=soon", "whole number"),
        ("sslrootcert=system sslmode=require", "verify-full"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("ssl_max_protocol_version=TLSv1.1", "TLSv1.2"),
        ("target_session_attrs=writer", "target_session_attrs"),
        ("require_auth=scram", "require_auth"),
        ("require_auth=md5,!password", "require_auth"),
        ("replication=maybe", "replication"),
    ] {
        let error = refusal(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    read(
        "gssencmode=disable krbsrvname=x sslcompression=1 requirepeer='' sslcertmode=allow client_encoding=auto",
    );
}

#[test]
fn timeouts_and_sessions() {
    assert_eq!(read("connect_timeout=1").connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(read("connect_timeout=9").connect_timeout, Some(Duration::from_secs(9)));
    assert_eq!(read("connect_timeout=0").connect_timeout, None);
    assert_eq!(read("connect_timeout=-1").connect_timeout, None);
    assert_eq!(read("replication=1").replication, Replication::Physical);
    assert_eq!(read("replication=database").replication, Replication::Database);
    assert_eq!(read("target_session_attrs=prefer-standby").target, SessionTarget::PreferStandby);
    assert_eq!(read("sslrootcert=system").ssl_mode(), SslMode::VerifyFull);
    assert_eq!(read("fallback_application_name=a").application_name, "a");
    assert_eq!(read("fallback_application_name=a application_name=b").application_name, "b");
}

#[test]
fn methods() {
    let allows = |text: &str, method| AllowedMethods::read(text).unwrap().allows(method);
    assert!(allows("", "md5") && allows("md5,scram-sha-256", "md5") && allows("!md5, !password", "none"));
    assert!(!allows("scram-sha-256", "md5") && !allows("!md5", "md5"));
}

#[test]
fn files_of_the_home_directory_count_when_they_are_there() {
    let home = tempfile::tempdir().unwrap();
    let environment = environment().with_home(home.path());
    let before = ConnInfo::parse_in("", &environment).unwrap();
    assert_eq!((before.tls.roots, before.tls.client), (TrustedRoots::Unset, None));
    let directory = home.path().join(".postgresql");
    std::fs::create_dir(&directory).unwrap();
    for name in ["root.crt", "postgresql.crt"] {
        std::fs::File::create(directory.join(name)).unwrap();
    }
    let tls = ConnInfo::parse_in("", &environment).unwrap().tls;
    assert_eq!(tls.roots, TrustedRoots::File(directory.join("root.crt")));
    assert_eq!(tls.client, Some((directory.join("postgresql.crt"), directory.join("postgresql.key"))));
    assert_eq!(ConnInfo::parse_in("sslcertmode=disable", &environment).unwrap().tls.client, None);
}

#[test]
fn nothing_printed_holds_a_password() {
    let environment = environment().with("PGPASSWORD", "hidden");
    let info = ConnInfo::parse_in("password=hidden", &environment).unwrap();
    for shown in [format!("{info} {info:?} {info:#?}"), format!("{environment:?}")] {
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

proptest! {
    #[test]
    fn any_text_is_settings_or_an_error(text in "\\PC{0,100}") {
        let _result = ConnInfo::parse_in(&text, &environment());
    }

    #[test]
    fn any_value_is_accepted_or_refused(n in 0..keywords::KEYWORDS.len(), value in "\\PC{0,20}") {
        let value = value.replace('\\', r"\\").replace('\'', r"\'");
        let _result = ConnInfo::parse_in(&format!("{}='{value}'", keywords::KEYWORDS[n].name), &environment());
    }
}
