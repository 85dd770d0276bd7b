//! No call tells of a memory that its scope does not cover.

use proptest::prelude::*;

use super::*;

const USERS: [&str; 3] = ["ana", "bob", "ana "];
const PARTS: [Option<&str>; 3] = [None, Some("x"), Some("y")];

#[derive(Clone, Debug)]
struct Call {
    user: usize,
    agent: usize,
    project: usize,
    session: usize,
    id: u64,
    axis: usize,
    what: u8,
}

impl Call {
    fn scope(&self) -> Scope {
        let part = |index: usize| PARTS[index].map(str::to_owned);
        let names =
            Names { agent: part(self.agent), project: part(self.project), session: part(self.session) };
        Scope::new(USERS[self.user], names).unwrap()
    }
}

fn call() -> impl Strategy<Value = Call> {
    (0_usize..3, 0_usize..3, 0_usize..3, 0_usize..3, 1_u64..12, 0_usize..8, 0_u8..10).prop_map(
        |(user, agent, project, session, id, axis, what)| Call {
            user,
            agent,
            project,
            session,
            id,
            axis,
            what,
        },
    )
}

/// The scope of a memory is written in its text.
fn label(user: &str, names: &Names) -> String {
    format!("{user:?} {:?} {:?} {:?}", names.agent, names.project, names.session)
}

fn check(scope: &Scope, memory: &Memory) {
    assert!(scope.names().covers(&memory.names), "{scope:?} was told of {memory:?}");
    let told = memory.text.split(" common ").next().unwrap();
    assert_eq!(told, label(scope.user_name(), &memory.names), "{scope:?}");
}

fn run(engram: &Engram, call: &Call) {
    let scope = call.scope();
    let anything = Some(When { as_of: None, known_at: 0, any: true });
    let mut told = Vec::new();
    match call.what {
        0..4 => {
            let text = format!("{} common word{}", label(scope.user_name(), scope.names()), call.axis);
            engram.remember(&scope, &[with_vector(&text, call.axis)]).unwrap();
        }
        4 => {
            let Ok(old) = engram.get(&scope, call.id) else { return };
            let text = format!("{} common update", label(scope.user_name(), &old.names));
            let _ = engram.remember(&scope, &[Draft { supersedes: Some(call.id), ..Draft::new(text) }]);
        }
        5 => {
            let before = everything(engram);
            let gone =
                if call.id > 9 { engram.forget_all(&scope) } else { engram.forget(&scope, &[call.id]) };
            let after = everything(engram);
            let lost: Vec<_> =
                before.iter().filter(|(user, memory)| !after.contains(&(user, memory.clone()))).collect();
            for (user, memory) in &lost {
                // Neighbours' links to what is gone change; what is gone is the scope's.
                let still = after.iter().any(|(owner, other)| owner == user && other.id == memory.id);
                assert!(still || (*user == scope.user_name() && scope.names().covers(&memory.names)));
            }
            assert!(gone.is_err() || before.len() - after.len() == gone.unwrap() as usize);
        }
        6 => told.extend(engram.get(&scope, call.id)),
        7 => told.extend(engram.history(&scope, call.id).unwrap_or_default()),
        8 => {
            told.extend(engram.list(&scope, anything, 0, 100).unwrap());
            let mine = everything(engram);
            let mine = mine
                .iter()
                .filter(|(user, memory)| *user == scope.user_name() && scope.names().covers(&memory.names));
            assert_eq!(told.len(), mine.count(), "everything of the scope is told");
        }
        _ => {
            let query = Query { vector: Some(along(call.axis)), when: anything, ..Query::new("common", 100) };
            for text in [Some("common word1".to_owned()), None] {
                let hits = engram.recall(&scope, &Query { text, ..query.clone() }).unwrap();
                told.extend(hits.into_iter().map(|hit| hit.memory));
            }
            told.extend(
                engram
                    .recall(&scope, &Query { vector: None, ..query })
                    .unwrap()
                    .into_iter()
                    .map(|hit| hit.memory),
            );
        }
    }
    for memory in &told {
        check(&scope, memory);
    }
}

fn everything(engram: &Engram) -> Vec<(&'static str, Memory)> {
    let anything = Some(When { as_of: None, known_at: 0, any: true });
    let all = USERS.iter().map(|user| (*user, engram.list(&scope(user), anything, 0, 1000).unwrap()));
    all.flat_map(|(user, memories)| memories.into_iter().map(move |memory| (user, memory))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_call_tells_of_another_scope(calls in prop::collection::vec(call(), 1..60)) {
        let disk = MemoryDisk::new();
        let engram = open(&disk);
        for call in &calls {
            run(&engram, call);
        }
        let told = everything(&engram);
        drop(engram);
        prop_assert_eq!(told, everything(&open(&disk)), "what is read from disk is what was there");
    }
}

/// Words and counts of another scope change no score.
#[test]
fn another_scope_changes_no_score() {
    let engram = open(&MemoryDisk::new());
    let shop = Scope::new("ana", names(Some("shop"), None)).unwrap();
    let drafts = ["the red door", "a blue door", "green grass"].map(Draft::new);
    engram.remember(&shop, &drafts).unwrap();
    let before = engram.recall(&shop, &Query::new("red door", 5)).unwrap();
    let other = Scope::new("ana", names(Some("blog"), None)).unwrap();
    let more: Vec<_> = (0..50).map(|number| Draft::new(format!("red red door {number}"))).collect();
    engram.remember(&other, &more).unwrap();
    engram.remember(&scope("bob"), &more).unwrap();
    assert_eq!(engram.recall(&shop, &Query::new("red door", 5)).unwrap(), before);
}
