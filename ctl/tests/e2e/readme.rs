//! The README, executed: its configuration is accepted, and its commands do what they are said to do.

use std::fs;
use std::process::Command;

use crate::account;
use crate::postgres::Postgres;
use crate::world::{World, free_port};

const README: &str = include_str!("../../../README.md");

/// Returns the blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_readme_does_what_it_says() {
    let postgres = Postgres::start();
    let account = account("fast", postgres.port)
        + "[[instances]]\nid = \"i-0123456789abcdef2\"\nname = \"win-1\"\nssm = {}\n";
    // The README's ports may be taken on this machine.
    let ports: Vec<_> = ["15432", "15433", "13389", "13306"]
        .map(|port| (port, free_port().to_string()))
        .into();
    let own = |text: &str| {
        ports
            .iter()
            .fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    };
    let [configuration] = blocks("toml")[..] else {
        panic!("one block of TOML")
    };
    let mut world = World::new(&account, &own(configuration));
    fs::create_dir(world.path(".aws")).unwrap();
    let environment = world.emulator.environment();
    let keys = format!(
        "aws_access_key_id = {}\naws_secret_access_key = {}\n",
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    );
    fs::write(
        world.path(".aws/credentials"),
        format!("[dev]\n{keys}[prod]\n{keys}"),
    )
    .unwrap();
    world.start();

    let [commands] = blocks("console")[..] else {
        panic!("one block of commands")
    };
    let mut executed = 0;
    for step in commands.split("$ ").skip(1) {
        let (command, expected) = step.split_once('\n').unwrap();
        let (command, expected) = (own(command), own(expected));
        let output = world
            .in_environment(Command::new("bash").arg("-c").arg(&command))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {output:?}\n{}", world.log());
        assert!(said.starts_with(expected.trim_end()), "{command}: {said}");
        executed += 1;
    }
    assert_eq!(executed, commands.matches("$ ").count());
    assert!(executed > 5, "only {executed} commands were found");
}
