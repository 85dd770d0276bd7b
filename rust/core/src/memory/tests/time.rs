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

/// What is to come may be overtaken: Rome from 300 was planned, then Lima from 150 was told.
#[test]
fn a_version_that_begins_before_those_between_takes_the_place_of_all() {
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    let ana = scope("ana");
    engram.remember(&ana, &[fact("Oslo", 100, 100, None)]).unwrap();
    engram.remember(&ana, &[fact("Rome", 300, 110, Some(1))]).unwrap();
    engram.remember(&ana, &[fact("Lima", 150, 120, Some(2))]).unwrap();
    let config = EngramConfig { checkpoint_after: 1, ..config() };
    let saving = Engram::open_on(Arc::new(disk.clone()), config).unwrap();
    saving.stats(&ana).unwrap();
    for engram in [&engram, &saving, &open(&disk)] {
        let list = |when| engram.list(&ana, Some(when), 0, 9).unwrap();
        for (time, city) in [(100, "Oslo"), (149, "Oslo"), (150, "Lima"), (299, "Lima"), (300, "Lima")] {
            assert_eq!(texts(&list(at(time))), [city], "at {time}");
            let query = Query { when: Some(at(time)), ..Query::new("Oslo Rome Lima", 9) };
            assert_eq!(found(&engram.recall(&ana, &query).unwrap()), [city], "at {time}");
        }
        // At 115 nobody knew of Lima.
        for (time, city) in [(299, "Oslo"), (300, "Rome")] {
            let known = When { known_at: 115, ..at(time) };
            assert_eq!(texts(&list(known)), [city], "at {time}, as was known");
        }
        let history = engram.history(&ana, 1).unwrap();
        let ends: Vec<_> = history.iter().map(|one| (one.valid_from, one.valid_to, one.closed)).collect();
        assert_eq!(ends, [(100, 150, 110), (300, 300, 120), (150, FOREVER, FOREVER)]);
    }
}

/// Without a time what is still to come counts, but not what will never come.
#[test]
fn what_is_overtaken_before_it_comes_never_comes() {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    let far = FOREVER / 2;
    engram.remember(&ana, &[fact("Oslo", 100, 100, None)]).unwrap();
    engram.remember(&ana, &[fact("Rome", far + 9, 110, Some(1))]).unwrap();
    assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["Oslo", "Rome"]);
    engram.remember(&ana, &[fact("Lima", far, 120, Some(2))]).unwrap();
    assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["Oslo", "Lima"]);
    assert_eq!(engram.stats(&ana).unwrap().present, 2);
}

#[test]
fn a_fact_that_ended_stays_ended_when_another_follows() {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    engram.remember(&ana, &[fact("Ana rents a flat", 100, 100, None)]).unwrap();
    engram.end(&ana, 1, 200).unwrap();
    engram.remember(&ana, &[fact("Ana owns a house", 300, 300, Some(1))]).unwrap();
    let list = |time| engram.list(&ana, Some(at(time)), 0, 9).unwrap();
    assert_eq!(texts(&list(199)), ["Ana rents a flat"]);
    assert!(list(250).is_empty());
    assert_eq!(texts(&list(300)), ["Ana owns a house"]);
}

/// Whichever version is named: with the newest alone gone, an older one would be true again.
#[test]
fn forgetting_a_fact_forgets_its_versions() {
    for named in [1, 3, 4] {
        let disk = MemoryDisk::new();
        let engram = open(&disk);
        let ana = scope("ana");
        engram.remember(&ana, &[fact("Oslo", 100, 100, None), fact("a cat", 100, 100, None)]).unwrap();
        engram.remember(&ana, &[fact("Rome", 200, 200, Some(1))]).unwrap();
        engram.remember(&ana, &[fact("Lima", 300, 300, Some(3))]).unwrap();
        assert_eq!(engram.forget(&ana, &[named]).unwrap(), 3);
        for engram in [&engram, &open(&disk)] {
            let anything = Some(When { as_of: None, known_at: 0, any: true });
            for when in [None, anything, Some(at(150)), Some(at(400))] {
                assert_eq!(texts(&engram.list(&ana, when, 0, 9).unwrap()), ["a cat"]);
            }
            for id in [1, 3, 4] {
                assert!(matches!(engram.history(&ana, id), Err(crate::Error::NoMemory { .. })));
            }
        }
    }
}
