//! The structure of the source: within some folders, files must not import each other in a cycle.
//!
//! The imports are read from the source text. An import is a path that begins at `crate`, `super`,
//! `self` or a child module. It is followed through the re-exports of `mod.rs` to the file that
//! defines the item. Tests at the end of a file and re-exports themselves do not count as imports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// Folders without import cycles: the source folder of a package, and a folder inside it.
const FOLDERS: &[(&str, &str)] = &[
    ("rocket_tx/src", "tx"),
    ("rocket_tx_aggregates/src", "aggregate"),
    ("rocket_tx_aggregates/src", "lock"),
    ("rocket_tx_idempotency/src", ""),
    ("src", ""),
];

type Module = Vec<String>;

/// The files of a crate with their imports, by module.
struct Imports(BTreeMap<Module, File>);

struct File {
    path: PathBuf,
    /// The full paths in the code of the file.
    imports: Vec<Module>,
    /// The names that `use` declarations introduce, with their full paths.
    names: BTreeMap<String, Module>,
}

/// A path as it is written in the source, and the name that its `use` introduces.
struct Mention {
    path: Vec<String>,
    name: Option<String>,
    is_reexport: bool,
}

impl Imports {
    fn of(sources: &BTreeMap<PathBuf, String>) -> Self {
        let modules: BTreeSet<Module> = sources.keys().map(|path| module_of(path)).collect();
        let file = |(path, text): (&PathBuf, &String)| {
            let module = module_of(path);
            let mut imports = Vec::new();
            let mut names = BTreeMap::new();
            for mention in mentions(&tokens(text)) {
                let Some(full) = full_path(&mention.path, &module, &modules) else {
                    continue;
                };
                if let Some(name) = mention.name {
                    names.insert(name, full.clone());
                }
                if !mention.is_reexport {
                    imports.push(full);
                }
            }
            let path = path.clone();
            let file = File {
                path,
                imports,
                names,
            };
            (module, file)
        };
        Self(sources.iter().map(file).collect())
    }

    /// Reads all files in the folder `source` of this repository.
    fn at(source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let mut sources = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|it| it == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    sources.insert(path.strip_prefix(&root).unwrap().to_owned(), text);
                }
            }
        }
        Self::of(&sources)
    }

    /// Returns the module whose file defines the item at `path`.
    fn home(&self, path: &[String], depth: usize) -> Module {
        let mut module = Module::new();
        for (index, segment) in path.iter().enumerate() {
            let mut child = module.clone();
            child.push(segment.clone());
            if self.0.contains_key(&child) {
                module = child;
                continue;
            }
            let name = self.0.get(&module).and_then(|file| file.names.get(segment));
            return match name {
                // The limit of the depth ends the search when names refer to each other.
                Some(target) if depth < 16 => {
                    let rest = target.iter().chain(&path[index + 1..]).cloned();
                    self.home(&rest.collect::<Module>(), depth + 1)
                }
                _ => module,
            };
        }
        module
    }

    /// Returns, for each file of a folder, the other files of the folder that it imports from.
    fn imports_within(&self, folder: &str) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let parts = folder.split('/').filter(|part| !part.is_empty());
        let folder: Module = parts.map(str::to_owned).collect();
        let inside = |module: &Module| module.starts_with(&folder);
        let files = self.0.iter().filter(|(module, _)| inside(module));
        let imports = |module: &Module, file: &File| {
            let homes = file.imports.iter().map(|path| self.home(path, 0));
            let others = homes.filter(|home| inside(home) && home != module);
            others.map(|home| &*self.0[&home].path).collect()
        };
        files
            .map(|(module, file)| (&*file.path, imports(module, file)))
            .collect()
    }

    /// Returns the shortest cycle through each file that is in a cycle, as text.
    fn cycles(&self, folder: &str) -> BTreeSet<String> {
        let imports = self.imports_within(folder);
        assert!(imports.len() > 1, "`{folder}` does not have several files");
        imports
            .keys()
            .filter_map(|file| cycle_through(file, &imports))
            .collect()
    }
}

/// Returns the shortest path from a file through imports back to the file, starting with the file
/// whose name sorts first.
fn cycle_through(file: &Path, imports: &BTreeMap<&Path, BTreeSet<&Path>>) -> Option<String> {
    let mut ways = VecDeque::from([vec![file]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in imports.get(way.last()?).into_iter().flatten().copied() {
            if next == file {
                let first = (0..way.len()).min_by_key(|index| way[*index])?;
                let turned = way.iter().cycle().skip(first).take(way.len() + 1);
                let names: Vec<String> = turned.map(|path| path.display().to_string()).collect();
                return Some(names.join(" -> "));
            }
            if seen.insert(next) {
                ways.push_back(way.iter().copied().chain([next]).collect());
            }
        }
    }
    None
}

fn module_of(path: &Path) -> Module {
    let stem = path.with_extension("");
    let mut module: Module = stem
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if matches!(module.last().unwrap().as_str(), "mod" | "lib" | "main") {
        module.pop();
    }
    module
}

/// Splits the code, without comments and tests, into identifiers, `::`, and single other
/// characters.
fn tokens(text: &str) -> Vec<String> {
    let code = text.lines().take_while(|line| *line != "#[cfg(test)]");
    let code = code.map(|line| line.split("//").next().unwrap_or_default());
    let code: Vec<char> = code.collect::<Vec<_>>().join("\n").chars().collect();
    let in_name = |char: &char| char.is_alphanumeric() || *char == '_';
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let length = match code[at] {
            ':' if code.get(at + 1) == Some(&':') => 2,
            char if in_name(&char) => code[at..].iter().take_while(|char| in_name(char)).count(),
            _ => 1,
        };
        if !code[at].is_whitespace() {
            tokens.push(code[at..at + length].iter().collect());
        }
        at += length;
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|char: char| char.is_alphanumeric() || char == '_')
}

/// Returns all paths of more than one segment, and the paths of each `use`.
fn mentions(tokens: &[String]) -> Vec<Mention> {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = |back: usize| at.checked_sub(back).map_or("", token);
        let is_visibility = before(1) == "in" && before(2) == "(" && before(3) == "pub";
        let is_use = token(at) == "use" && token(at + 1) != "<";
        let is_path = token(at + 1) == "::"
            && is_name(token(at))
            && !matches!(before(1), "::" | "$")
            && !is_visibility;
        let is_reexport = matches!(before(1), "pub" | ")");
        if is_use {
            at = tree(tokens, at + 1, &[], &mut |path: Vec<String>, name| {
                found.push(Mention {
                    path,
                    name: Some(name),
                    is_reexport,
                });
            });
        } else if is_path {
            at = tree(tokens, at, &[], &mut |path: Vec<String>, _| {
                found.push(Mention {
                    path,
                    name: None,
                    is_reexport: false,
                });
            });
        } else {
            at += 1;
        }
    }
    found
}

/// Reads a tree such as `a::b::{c, d as e}` from the position `at`, with the path `prefix` before
/// it. Returns the position after the tree.
fn tree(
    tokens: &[String],
    mut at: usize,
    prefix: &[String],
    found: &mut impl FnMut(Vec<String>, String),
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut path = prefix.to_vec();
    loop {
        if is_name(token(at)) {
            path.push(token(at).to_owned());
            at += 1;
            if token(at) == "::" {
                at += 1;
                continue;
            }
        } else if token(at) == "{" {
            at += 1;
            while !matches!(token(at), "}" | "") {
                let end = match token(at) {
                    "," => at + 1,
                    _ => tree(tokens, at, &path, found),
                };
                at = end.max(at + 1);
            }
            return at + 1;
        }
        break;
    }
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if token(at) == "as" {
        name = token(at + 1).to_owned();
        at += 2;
    }
    found(path, name);
    at
}

/// Returns a path from the crate's root, or `None` for a path into another crate or above the root.
fn full_path(path: &[String], module: &Module, modules: &BTreeSet<Module>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut full = match first.as_str() {
        "crate" => Module::new(),
        "self" | "super" => module.clone(),
        child => {
            let mut full = module.clone();
            full.push(child.to_owned());
            return modules.contains(&full).then(|| {
                full.extend_from_slice(rest);
                full
            });
        }
    };
    let ups = path.iter().filter(|segment| *segment == "super").count();
    full.truncate(full.len().checked_sub(ups)?);
    let rest = path
        .iter()
        .skip_while(|it| matches!(it.as_str(), "crate" | "self" | "super"));
    full.extend(rest.cloned());
    Some(full)
}

#[test]
fn no_files_of_a_folder_import_each_other_in_a_cycle() {
    for (source, folder) in FOLDERS {
        let cycles = Imports::at(source).cycles(folder);
        assert!(
            cycles.is_empty(),
            "cycles in `{source}/{folder}`: {cycles:#?}"
        );
    }
}

/// Guards and settlement both depend on the registry, but not on each other.
#[test]
fn guards_and_settlement_do_not_import_each_other() {
    let imports = Imports::at("rocket_tx/src");
    let imports = imports.imports_within("tx");
    for (one, other) in [
        ("tx/guards", "tx/settlement"),
        ("tx/settlement", "tx/guards"),
        ("tx/registry", "tx/guards"),
        ("tx/registry", "tx/settlement"),
        ("tx/monitor", "tx/registry"),
        ("tx/failure", "tx/registry"),
    ] {
        let mut ones = imports.iter().filter(|(file, _)| file.starts_with(one));
        let found = ones.find(|(_, homes)| homes.iter().any(|home| home.starts_with(other)));
        assert!(found.is_none(), "`{one}` imports from `{other}`: {found:?}");
    }
}

#[test]
fn a_cycle_is_detected_in_every_form_of_import() {
    let cycles = |b: &str| {
        let text = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        Imports::of(&BTreeMap::from([
            text("lib.rs", "pub mod folder; pub use folder::A as Anything;"),
            text("folder/mod.rs", "mod a; mod b; pub use self::{a::A, b::*};"),
            text("folder/a.rs", "use super::b::{self, B};\npub struct A;"),
            text("folder/b.rs", b),
        ]))
        .cycles("folder")
    };
    for b in [
        "use super::a::A;",
        "use super::A;",
        "use super::{a, B as C};",
        "use crate::folder::A;",
        "use crate::{Anything, folder};",
        "fn f() { super::a::A::new() }",
        "impl From<crate::folder::A> for B {}",
    ] {
        assert_eq!(
            cycles(b).into_iter().collect::<Vec<_>>(),
            ["folder/a.rs -> folder/b.rs -> folder/a.rs"],
            "{b}"
        );
    }
    for b in [
        "",
        "// use super::A;",
        "pub(in crate::folder) struct B;",
        "use std::a::A; macro_rules! m { () => { $crate::folder::A } }",
        "#[cfg(test)]\nmod tests { use super::super::a::A; }",
    ] {
        assert!(cycles(b).is_empty(), "{b}");
    }
}
