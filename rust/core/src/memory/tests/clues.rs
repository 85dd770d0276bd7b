//! What a question asks for besides its words.

use super::*;

fn said(author: &str, text: &str) -> Draft {
    Draft { author: Some(author.into()), ..Draft::new(text) }
}

#[test]
fn who_is_asked_about() {
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    let ana = scope("ana");
    engram.remember(&ana, &[said("Bob", "hiking is dull"), said("Eva", "hiking is fun")]).unwrap();
    for engram in [&engram, &open(&disk)] {
        for (question, text) in
            [("What does Bob say of hiking?", "hiking is dull"), ("Eva, hiking", "hiking is fun")]
        {
            let hits = engram.recall(&ana, &Query::new(question, 2)).unwrap();
            assert_eq!(hits[0].memory.text, text);
            assert_eq!((hits[0].signals.author > 0.5, hits[1].signals.author > 0.5), (true, false));
        }
        // A name alone is a word again.
        engram.recall(&ana, &Query::new("Bob", 2)).unwrap();
    }
}

/// Who speaks in another scope is nobody's business here.
#[test]
fn authors_of_another_scope_are_words() {
    let engram = open(&MemoryDisk::new());
    let (shop, blog) = ("shop", "blog");
    let scope_of = |project| Scope::new("ana", names(Some(project), None)).unwrap();
    engram.remember(&scope_of(shop), &[Draft::new("Bob likes tea"), Draft::new("tea is hot")]).unwrap();
    let before = engram.recall(&scope_of(shop), &Query::new("does Bob like tea", 2)).unwrap();
    engram.remember(&scope_of(blog), &[said("Bob", "no tea")]).unwrap();
    assert_eq!(engram.recall(&scope_of(shop), &Query::new("does Bob like tea", 2)).unwrap(), before);
}

#[test]
fn answers_and_dates() {
    let engram = open(&MemoryDisk::new());
    let session = Scope::new("ana", names(None, Some("s"))).unwrap();
    engram.remember(&session, &["Which tea?", "green tea", "tea again"].map(Draft::new)).unwrap();
    let hits = engram.recall(&session, &Query::new("tea", 3)).unwrap();
    assert_eq!(hits[0].memory.text, "green tea");
    let of = |text: &str| hits.iter().find(|hit| hit.memory.text == text).unwrap().signals;
    assert_eq!(
        (of("green tea").answers > 0.5, of("Which tea?").asks > 0.5, of("tea again").answers > 0.5),
        (true, true, false)
    );
    let day = 86_400_000;
    let dated = |text: &str, days: i64| Draft { valid_from: Some(days * day), ..Draft::new(text) };
    engram.remember(&scope("eva"), &[dated("a walk", 18_754), dated("a walk too", 18_755)]).unwrap();
    let hits = engram.recall(&scope("eva"), &Query::new("Where did we walk on May 8th, 2021?", 2)).unwrap();
    assert_eq!(hits[0].memory.text, "a walk too");
    assert!((hits[0].signals.date - 1.0).abs() < 1e-6 && (hits[1].signals.date - 2.0 / 3.0).abs() < 1e-6);
}
