//! `tunnelctl reload`.

use tunneld_proto::v1::{Problem, ReloadResponse};

use crate::fake::Fake;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn changed() -> ReloadResponse {
    ReloadResponse {
        path: "/c.toml".to_owned(),
        added: names(&["a", "b"]),
        removed: names(&["c"]),
        ..ReloadResponse::default()
    }
}

fn refused() -> ReloadResponse {
    let problem = |line, message: &str, hint: &str| Problem {
        path: "/c.toml".to_owned(),
        line,
        message: message.to_owned(),
        hint: hint.to_owned(),
    };
    let problems = vec![
        problem(14, "unknown key `rout`", "use: route"),
        problem(0, "no such file", ""),
    ];
    ReloadResponse {
        path: "/c.toml".to_owned(),
        problems,
        ..ReloadResponse::default()
    }
}

#[tokio::test]
async fn what_changed_is_the_answer() {
    let fake = Fake::serving(Vec::new());
    fake.script.reloads(changed());
    fake.run(&["reload"])
        .await
        .is(0, "/c.toml: added a, b; removed c\n", "");
    let document =
        r#"{"schema":1,"path":"/c.toml","problems":[],"added":["a","b"],"changed":[],"removed":["c"]}"#;
    fake.run(&["reload", "--json"])
        .await
        .is(0, &format!("{document}\n"), "");
}

#[tokio::test]
async fn an_unchanged_file_says_so() {
    let fake = Fake::serving(Vec::new());
    fake.script.reloads(ReloadResponse {
        path: "/c.toml".to_owned(),
        ..ReloadResponse::default()
    });
    fake.run(&["reload"])
        .await
        .is(0, "/c.toml: no tunnel changed\n", "");
}

#[tokio::test]
async fn every_problem_of_a_refused_file_is_told() {
    let fake = Fake::serving(Vec::new());
    fake.script.reloads(refused());
    let talk = "\
/c.toml:14: unknown key `rout`
  use: route
/c.toml: no such file
2 problems; the running configuration is unchanged
";
    fake.run(&["reload"]).await.is(1, "", talk);

    let ran = fake.run(&["reload", "--json"]).await;
    let problems = r#""problems":[{"path":"/c.toml","line":14,"message":"unknown key `rout`","hint":"use: route"},{"path":"/c.toml","line":null,"message":"no such file","hint":null}]"#;
    assert!(ran.stdout.contains(problems), "{}", ran.stdout);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), talk));
}
