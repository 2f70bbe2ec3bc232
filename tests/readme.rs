//! The README shows the files of `examples/notes`, which is compiled and tested with everything else. The
//! documentation lists all types of problems.

/// The files that the README shows.
const FILES: [&str; 7] = [
    "Cargo.toml",
    "Rocket.toml",
    "migrations/0001_notes.sql",
    "build.rs",
    "src/main.rs",
    "src/author.rs",
    "src/tests.rs",
];

#[test]
fn the_files_of_the_first_service_are_those_in_the_readme() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    for file in FILES {
        let (_, after) = readme
            .split_once(&format!("\n`{file}`"))
            .unwrap_or_else(|| panic!("the README does not show `{file}`"));
        let (_, block) = after.split_once("\n```").unwrap();
        let (_, block) = block.split_once('\n').unwrap();
        let (shown, _) = block.split_once("```\n").unwrap();
        let content = std::fs::read_to_string(format!("examples/notes/{file}")).unwrap();
        // In the README, the clone is beside the project.
        let content = content.replace("\"../../rocket_tx", "\"../rocket_tx/rocket_tx");
        match file {
            "Cargo.toml" => assert!(content.ends_with(shown), "{file}:\n{content}"),
            _ => assert_eq!(content, shown, "{file}"),
        }
    }
}

#[test]
fn every_type_of_problem_is_documented() {
    let page = std::fs::read_to_string("docs/promises.md").unwrap();
    let mut count = 0;
    for file in [
        "rocket_tx/src/tx/failure/error.rs",
        "rocket_tx/src/tx/guards/catchers.rs",
        "rocket_tx_aggregates/src/aggregate/error.rs",
        "rocket_tx_aggregates/src/lock/error.rs",
    ] {
        let source = std::fs::read_to_string(file).unwrap();
        // An arm of the `match` that chooses the type: `=> "kind"` or `=> ("kind", detail)`.
        let arms = source
            .split("=>")
            .skip(1)
            .map(|arm| arm.trim_start_matches(['(', ' ', '\n', '{']));
        let kinds = arms.filter_map(|arm| arm.strip_prefix('"')?.split_once('"'));
        let is_kind = |kind: &&str| kind.bytes().all(|it| it.is_ascii_lowercase() || it == b'-');
        for kind in kinds.map(|(kind, _)| kind).filter(is_kind) {
            assert!(page.contains(&format!("`{kind}`")), "{kind}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}
