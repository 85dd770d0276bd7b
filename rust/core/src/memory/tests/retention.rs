use super::*;

fn recorded(text: &str, at: i64, supersedes: Option<u64>) -> Draft {
    Draft { recorded: Some(at), supersedes, ..Draft::new(text) }
}

fn filled() -> (Engram, Scope) {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    for number in 0..6 {
        let project = if number % 2 == 0 { Some("even") } else { None };
        let scope = Scope::new("ana", names(project, None)).unwrap();
        engram.remember(&scope, &[recorded(&format!("fact {number}"), number, None)]).unwrap();
    }
    (engram, ana)
}

fn left(engram: &Engram) -> Vec<String> {
    let all = engram.list(&scope("ana"), None, 0, 99).unwrap();
    all.into_iter().map(|memory| memory.text.replace("fact ", "")).collect()
}

#[test]
fn the_oldest_go_first() {
    let (engram, ana) = filled();
    let count = |most| Retention { count_max: Some(most), ..Retention::default() };
    assert_eq!(engram.retain(&ana, &count(4)).unwrap(), 2);
    assert_eq!(left(&engram), ["2", "3", "4", "5"]);
    let even = Scope::new("ana", names(Some("even"), None)).unwrap();
    assert_eq!(engram.retain(&even, &count(1)).unwrap(), 1);
    assert_eq!(left(&engram), ["3", "4", "5"], "only the scope's own count and go");
    assert_eq!(engram.retain(&ana, &count(9)).unwrap(), 0);
    let bytes = (engram.stats(&ana).unwrap().log_bytes - crate::format::LOG_RECORDS_AT) / 3 * 2 + 2;
    assert_eq!(
        engram.retain(&ana, &Retention { bytes_max: Some(bytes), ..Retention::default() }).unwrap(),
        1
    );
    assert_eq!(left(&engram), ["4", "5"]);
    let age = Retention { age_ms_max: Some(1000), ..Retention::default() };
    engram.remember(&ana, &[Draft::new("new")]).unwrap();
    assert_eq!(engram.retain(&ana, &age).unwrap(), 2);
    assert_eq!(left(&engram), ["new"]);
    let error = engram.retain(&ana, &Retention::default()).unwrap_err().to_string();
    assert!(error.contains("a limit of age, count or bytes"), "{error}");
}

#[test]
fn what_was_superseded_does_not_come_back() {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    // Told late: the newer version was recorded before the older one.
    engram.remember(&ana, &[recorded("old", 500, None)]).unwrap();
    engram.remember(&ana, &[recorded("new", 100, Some(1)), recorded("other", 600, None)]).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let age = Retention { age_ms_max: Some(now - 300), ..Retention::default() };
    assert_eq!(engram.retain(&ana, &age).unwrap(), 2);
    assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["other"]);
}
