//! The README shows the files of `examples/notes`, which is compiled and tested with everything else.

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
