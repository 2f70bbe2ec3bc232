//! Seeing to it that responses are settled after all other response fairings have run.
//!
//! Rocket runs response fairings in the order in which they were attached. A stage attaches its own
//! while it is ignited, and may attach further stages, which are ignited in the next round. So the
//! response half is attached anew in each round: as a singleton it leaves its former place for the
//! last one. A fairing that comes even later is found at launch.

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Phase, Rocket};

use super::answer::{Answer, NAME};
use super::settings::Settings;

/// How deep stages may attach stages.
const ROUNDS: u8 = 4;

/// Attaches the response half, now and in the rounds to come.
pub(super) struct ComesLast {
    rounds: u8,
}

impl ComesLast {
    pub(super) fn new() -> Self {
        Self { rounds: ROUNDS }
    }
}

#[rocket::async_trait]
impl Fairing for ComesLast {
    fn info(&self) -> Info {
        Info {
            name: "Settlement comes last",
            kind: Kind::Ignite,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        let rocket = rocket.attach(Answer);
        Ok(match self.rounds {
            0 | 1 => rocket,
            rounds => rocket.attach(Self { rounds: rounds - 1 }),
        })
    }
}

/// Why responses are not settled last, in words for the log.
pub(super) fn what_runs_later<P: Phase>(rocket: &Rocket<P>) -> Option<String> {
    // It is shown there alone.
    let Some(fairings) = fairings(&format!("{rocket:?}"), "response") else {
        tracing::warn!(
            "this version of Rocket does not show its fairings: take care that none which changes \
             responses is attached by a stage that another stage attached"
        );
        return None;
    };
    let ours = fairings.iter().rposition(|name| name == NAME)?;
    let later: Vec<String> = fairings[ours + 1..]
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    (!later.is_empty()).then(|| {
        format!(
            "the response fairing {} would run after `Settlement`, and could change what clients are \
             told of transactions; attach it in the launch code, or in a stage that the launch code \
             attaches",
            later.join(", ")
        )
    })
}

/// The names of the fairings of one kind in the order in which they run, out of Rocket's `Debug`.
pub(super) fn fairings(debug: &str, wanted: &str) -> Option<Vec<String>> {
    let (_, mut rest) = debug.split_once("fairings: Fairings { ")?;
    for kind in ["launch", "liftoff", "request", "response"] {
        let list = rest.strip_prefix(kind)?.strip_prefix(": [")?;
        let found;
        (found, rest) = names(list)?;
        if kind == wanted {
            return Some(found);
        }
        rest = rest.strip_prefix(", ")?;
    }
    None
}

/// The strings in a list, and what comes after its end.
fn names(list: &str) -> Option<(Vec<String>, &str)> {
    let mut names = Vec::new();
    let mut name: Option<String> = None;
    let mut characters = list.char_indices();
    while let Some((index, character)) = characters.next() {
        match (&mut name, character) {
            (None, ']') => return Some((names, &list[index + 1..])),
            (None, '"') => name = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => names.extend(name.take()),
            (Some(name), '\\') => name.extend(characters.next().map(|(_, escaped)| escaped)),
            (Some(name), other) => name.push(other),
        }
    }
    None
}

/// Says in the log, once, if a response fairing runs after the settlement.
pub(super) fn comes_too_early<P: Phase>(settings: &Settings, rocket: &Rocket<P>) -> bool {
    let late = settings.late.get_or_init(|| {
        let late = what_runs_later(rocket);
        if let Some(late) = &late {
            tracing::error!("{late}");
        }
        late
    });
    late.is_some()
}

#[cfg(test)]
mod tests {
    use super::{fairings, names};

    #[test]
    fn names_are_read_whatever_is_in_them() {
        let list =
            r#"Info { name: "a \"]\" b", kind: Kind(8) }, Info { name: "c", kind: Kind(8) }], x"#;
        let (names, rest) = names(list).unwrap();
        assert_eq!(names, ["a \"]\" b", "c"]);
        assert_eq!(rest, ", x");
    }

    #[test]
    fn rocket_shows_its_fairings() {
        let rocket = rocket::build().attach(super::Answer);
        let rocket = format!("{rocket:?}");
        let shown = fairings(&rocket, "response").unwrap();
        assert_eq!(shown, ["Shield", super::NAME]);
        assert_eq!(fairings(&rocket, "request").unwrap(), [""; 0]);
        assert_eq!(fairings("Rocket", "response"), None);
    }
}
