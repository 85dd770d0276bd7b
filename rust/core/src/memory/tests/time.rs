use super::*;

fn at(time: i64) -> When {
    When { as_of: Some(time), known_at: i64::MAX - 1, any: false }
}

fn fact(text: &str, valid_from: i64, recorded: i64, supersedes: Option<u64>) -> Draft {
    Draft { valid_from: Some(valid_from), recorded: Some(recorded), supersedes, ..Draft::new(text) }
}

/// Ana lived in Oslo from 100, in Bergen from 200, which was told at 250.
fn moved() -> (Engram, Scope) {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    let oslo = engram.remember(&ana, &[fact("Ana lives in Oslo", 100, 110, None)]).unwrap()[0];
    engram.remember(&ana, &[fact("Ana lives in Bergen", 200, 250, Some(oslo))]).unwrap();
    (engram, ana)
}

#[test]
fn a_newer_fact_takes_the_place_of_an_older() {
    let (engram, ana) = moved();
    assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["Ana lives in Bergen"]);
    assert_eq!(
        found(&engram.recall(&ana, &Query::new("where does Ana live", 9)).unwrap()),
        ["Ana lives in Bergen"]
    );
    for id in [1, 2] {
        let history = engram.history(&ana, id).unwrap();
        assert_eq!(texts(&history), ["Ana lives in Oslo", "Ana lives in Bergen"]);
        assert_eq!((history[0].superseded_by, history[1].supersedes), (Some(2), Some(1)));
        assert_eq!((history[0].valid_to, history[0].closed), (200, 250));
        assert_eq!((history[1].valid_to, history[1].closed), (FOREVER, FOREVER));
    }
    let error = engram.remember(&ana, &[fact("in Rome", 300, 300, Some(1))]).unwrap_err().to_string();
    assert!(error.contains("memory 1 was superseded by 2"), "{error}");
}

#[test]
fn the_past_as_it_was_and_as_it_was_known() {
    let (engram, ana) = moved();
    let list = |when| engram.list(&ana, when, 0, 9).unwrap();
    assert!(list(Some(at(99))).is_empty());
    assert_eq!(texts(&list(Some(at(199)))), ["Ana lives in Oslo"]);
    assert_eq!(texts(&list(Some(at(200)))), ["Ana lives in Bergen"]);
    // At 240 nobody knew of Bergen.
    let known = Some(When { as_of: Some(230), known_at: 240, any: false });
    assert_eq!(texts(&list(known)), ["Ana lives in Oslo"]);
    let any = Some(When { as_of: None, known_at: 0, any: true });
    assert_eq!(list(any).len(), 2);
    let query = Query { when: Some(at(150)), ..Query::new("lives", 9) };
    assert_eq!(found(&engram.recall(&ana, &query).unwrap()), ["Ana lives in Oslo"]);
}

#[test]
fn what_ended_is_not_present() {
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    let ana = scope("ana");
    engram.remember(&ana, &[fact("Ana has a bicycle", 100, 100, None)]).unwrap();
    engram.end(&ana, 1, 500).unwrap();
    for engram in [&engram, &open(&disk)] {
        assert!(engram.list(&ana, None, 0, 9).unwrap().is_empty());
        assert_eq!(texts(&engram.list(&ana, Some(at(499)), 0, 9).unwrap()), ["Ana has a bicycle"]);
        assert_eq!(engram.get(&ana, 1).unwrap().valid_to, 500);
    }
    let error = engram.end(&ana, 1, 99).unwrap_err().to_string();
    assert!(error.contains("true from 100 on"), "{error}");
}

#[test]
fn a_time_that_is_known_beforehand() {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    let draft = Draft { valid_to: Some(2000), ..fact("Ana is on holiday", 1000, 10, None) };
    engram.remember(&ana, &[draft]).unwrap();
    assert!(engram.list(&ana, None, 0, 9).unwrap().is_empty(), "long over");
    assert_eq!(engram.list(&ana, Some(at(1500)), 0, 9).unwrap().len(), 1);
}

#[test]
fn forgetting_a_fact_forgets_its_versions() {
    let (engram, ana) = moved();
    assert_eq!(engram.forget(&ana, &[2]).unwrap(), 2);
    assert!(engram.list(&ana, Some(When { as_of: None, known_at: 0, any: true }), 0, 9).unwrap().is_empty());
}
