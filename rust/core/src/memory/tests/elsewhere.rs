use super::*;
use crate::memory::{Found, Prepared, Question, prepare};

/// What a store elsewhere would have found: the signals of the files' hits, and what the drafts show.
fn found(hits: &[Hit], prepared: &[Prepared]) -> Vec<Found> {
    let before = |id: u64| if id == 1 { 0 } else { prepared[id as usize - 2].traits };
    let mut hits: Vec<&Hit> = hits.iter().collect();
    hits.sort_by_key(|hit| hit.memory.id);
    let found = hits.iter().map(|hit| Found {
        bm25: hit.signals.bm25,
        bm25_window: hit.signals.bm25_window,
        cosine: Some(hit.signals.cosine),
        cosine_window: Some(hit.signals.cosine_window),
        author: hit.memory.author.clone(),
        valid_from: hit.memory.valid_from,
        traits: prepared[hit.memory.id as usize - 1].traits,
        traits_before: before(hit.memory.id),
    });
    found.collect()
}

#[test]
fn what_is_found_elsewhere_is_ranked_as_in_files() {
    let engram = open(&MemoryDisk::new());
    let talk = Scope::new("ana", names(None, Some("talk"))).unwrap();
    let said = ["Shall we go hiking?", "Yes, hiking in May.", "Last week it rained", "hiking again?"];
    let drafts: Vec<Draft> = said
        .iter()
        .enumerate()
        .map(|(axis, text)| Draft {
            author: Some(["Ana", "Bob"][axis % 2].into()),
            valid_from: Some(1_620_000_000_000),
            ..with_vector(text, axis)
        })
        .collect();
    engram.remember(&talk, &drafts).unwrap();
    let prepared = prepare(&talk, &drafts, 7, config().embedder.map(|(_, dimension)| dimension)).unwrap();
    for text in ["When does Bob go hiking?", "What of May 2021?", "Ana"] {
        let query = Query { vector: Some(along(1)), ..Query::new(text, 9) };
        let hits = engram.recall(&talk, &query).unwrap();
        let authors = ["Ana", "Bob"].map(String::from);
        let question = Question::new(&query, &authors, Some(along(1).len())).unwrap();
        let ranked = question.rank(&found(&hits, &prepared));
        assert_eq!(ranked.len(), said.len());
        for (one, hit) in ranked.iter().zip(&hits) {
            assert_eq!(one.index as u64 + 1, hit.memory.id, "{text}");
            assert_eq!((one.score, one.signals), (hit.score, hit.signals), "{text}");
        }
    }
}

#[test]
fn what_is_not_accepted_in_files_is_not_accepted() {
    let ana = scope("ana");
    let error = prepare(&ana, &[Draft::new("")], 0, None).unwrap_err().to_string();
    assert!(error.contains("text has 0 bytes"), "{error}");
    let error = Question::new(&Query::new("x", 0), &[], None).err().unwrap().to_string();
    assert!(error.contains("k=0: accepted are 1 to"), "{error}");
}
