"""The statements that read. Every one names the owner, and the scopes that a call covers.

`%(owner)s` is a user's number, `%(scopes)s` the numbers of the user's scopes that the call covers. Both come
from COVERED, and from nowhere else.
"""

from __future__ import annotations

from stratakv.engram.postgres.driver import psycopg

_SQL = psycopg.sql.SQL

# Milliseconds since 1970 by the server's clock, the same for all who write and read.
NOW = _SQL("(extract(epoch FROM statement_timestamp()) * 1000)::bigint")

# The owner; of the scopes that are covered the numbers, sums of what they hold, and who said something; the
# embedder.
COVERED = _SQL("""
WITH covered AS (
    SELECT scopes.*
    FROM users JOIN scopes USING (owner)
    WHERE users.name = %(user)s
      AND (%(agent)s::text IS NULL OR agent = %(agent)s)
      AND (%(project)s::text IS NULL OR project = %(project)s)
      AND (%(session)s::text IS NULL OR session = %(session)s)
)
SELECT coalesce(max(owner), 0),
       coalesce(array_agg(number), '{{}}'),
       coalesce(sum(rows), 0)::bigint,
       coalesce(sum(words), 0)::float8,
       coalesce(sum(window_words), 0)::float8,
       ARRAY(SELECT DISTINCT unnest(authors) FROM covered),
       {now},
       (SELECT embedder FROM settings),
       (SELECT dimension FROM settings)
FROM covered
""").format(now=NOW)

# Whether memory `m` counts as present: `Rows::is_present` of the engine.
_PRESENT = _SQL("""(
    %(any)s OR (
        m.recorded <= %(known_at)s
        AND m.valid_from <= coalesce(%(as_of)s, m.valid_from)
        AND coalesce(%(as_of)s, greatest(%(now)s, m.valid_from))
            < CASE WHEN m.closed <= %(known_at)s THEN least(m.closed_to, m.valid_to) ELSE m.valid_to END
        AND (m.superseded_by IS NULL OR NOT EXISTS (
            SELECT FROM memories later
            WHERE later.owner = m.owner AND later.fact = m.fact AND later.id > m.id
              AND later.recorded <= %(known_at)s
              AND later.valid_from <= coalesce(%(as_of)s, greatest(%(now)s, m.valid_from))
        ))
    )
)""")

_COVERS = _SQL("m.owner = %(owner)s AND m.scope = ANY(%(scopes)s)")

# A memory by the names of TOLD: `User::memory` of the engine.
_TELL = _SQL("""
SELECT m.id, m.text, scopes.agent, scopes.project, scopes.session, m.metadata, m.source, m.author,
       m.valid_from,
       greatest(least(m.closed_to, m.valid_to, later.begins), m.valid_from),
       m.recorded,
       least(m.closed, next.recorded),
       older.id,
       m.superseded_by,
       EXISTS (SELECT FROM vectors WHERE vectors.owner = m.owner AND vectors.id = m.id)
FROM memories m
JOIN scopes ON scopes.number = m.scope
LEFT JOIN memories older ON older.owner = m.owner AND older.id = m.supersedes
LEFT JOIN memories next ON next.owner = m.owner AND next.id = m.superseded_by
LEFT JOIN LATERAL (
    SELECT min(valid_from) AS begins FROM memories v
    WHERE v.owner = m.owner AND v.fact = m.fact AND v.id > m.id
) later ON m.superseded_by IS NOT NULL
WHERE {covers} AND {chosen}
ORDER BY m.id
LIMIT %(limit)s
""")

TOLD = [
    "id",
    "text",
    "agent",
    "project",
    "session",
    "metadata",
    "source",
    "author",
    "valid_from",
    "valid_to",
    "recorded",
    "closed",
    "supersedes",
    "superseded_by",
    "has_vector",
]

SOME = _TELL.format(covers=_COVERS, chosen=_SQL("m.id = ANY(%(ids)s)"))
LISTED = _TELL.format(covers=_COVERS, chosen=_SQL("m.id > %(after)s AND {present}").format(present=_PRESENT))
VERSIONS = _TELL.format(
    covers=_COVERS,
    chosen=_SQL("m.fact = (SELECT fact FROM memories WHERE owner = %(owner)s AND id = %(id)s)"),
)

STATS = _SQL("""
SELECT count(*), count(*) FILTER (WHERE {present}), count(vectors.id),
       (SELECT coalesce(sum(bytes), 0)::bigint FROM memories WHERE owner = %(owner)s)
FROM memories m LEFT JOIN vectors USING (owner, id)
WHERE {covers}
""").format(present=_PRESENT, covers=_COVERS)

CHANGE = "SELECT change FROM users WHERE name = %s"

USERS = _SQL('SELECT name FROM users ORDER BY name COLLATE "C"')

# What is rated of a query, by number: the visible memories whose windows have most of the words, and those
# whose windows are nearest, with all that `Question.rank` takes of each. BM25 is the engine's (`bm25.rs`): a
# word counts by how rare it is in what is covered, and in a window each neighbour for half of the one nearer.
RATED = _SQL("""
WITH hit AS (
    SELECT w.word, w.count, m.id, m.scope, m.place, m.words
    FROM words w JOIN memories m USING (owner, id)
    WHERE w.owner = %(owner)s AND w.word = ANY(%(words)s::text[]) AND {covers}
), asked AS (
    SELECT word, times * ln(1 + (greatest(%(rows)s - hits, 0) + 0.5::float8) / (hits + 0.5)) AS weight
    FROM unnest(%(words)s::text[], %(times)s::int[]) AS given(word, times)
    JOIN (SELECT word, count(*)::float8 AS hits FROM hit GROUP BY word) AS counted USING (word)
), alone AS (
    SELECT id, sum(weight * {alone}) AS bm25
    FROM hit JOIN asked USING (word)
    GROUP BY id
), around AS (
    SELECT word, scope, place + step AS place, sum(count * units) / %(unit)s::float8 AS count
    FROM hit JOIN unnest(%(steps)s::int[], %(units)s::int[]) AS reach(step, units)
        ON place >= 0 OR step = 0
    GROUP BY word, scope, place + step
), windowed AS (
    SELECT m.id, sum(weight * {windowed}) AS bm25
    FROM around JOIN asked USING (word) JOIN memories m USING (scope, place)
    WHERE {covers} AND {present}
    GROUP BY m.id
), near AS (
    SELECT m.id
    FROM (
        SELECT id, window_direction <#> %(vector)s::halfvec AS distance
        FROM vectors
        WHERE owner = %(owner)s AND scope = ANY(%(scopes)s) AND %(vector)s::halfvec IS NOT NULL
        OFFSET 0  -- so that distances are joined and sorted, and not vectors
    ) AS seen JOIN memories m ON m.id = seen.id
    WHERE {covers} AND {present}
    ORDER BY distance
    LIMIT %(pool)s
), pool AS (
    (SELECT id FROM windowed ORDER BY bm25 DESC LIMIT %(pool)s) UNION SELECT id FROM near
)
SELECT m.id, coalesce(alone.bm25, 0), coalesce(windowed.bm25, 0),
       -(v.direction <#> %(vector)s::halfvec), -(v.window_direction <#> %(vector)s::halfvec),
       m.author, m.valid_from, m.traits, coalesce(before.traits, 0)
FROM pool JOIN memories m ON m.id = pool.id
LEFT JOIN alone ON alone.id = m.id
LEFT JOIN windowed ON windowed.id = m.id
LEFT JOIN vectors v ON v.owner = m.owner AND v.id = m.id
LEFT JOIN memories before ON before.scope = m.scope AND before.place = m.place - 1 AND m.place > 0
WHERE {covers}
ORDER BY m.id
""").format(
    covers=_COVERS,
    present=_PRESENT,
    # What a word adds that occurs `count` times among `words`.
    alone=_SQL(
        "count * (%(k1)s + 1) / (count + %(k1)s * (1 - %(b)s + %(b)s * hit.words / %(mean_words)s::float8))"
    ),
    windowed=_SQL(
        "around.count * (%(k1)s + 1) / (around.count + %(k1)s * (1 - %(b)s + %(b)s * "
        "(m.window_words / %(unit)s::float8) / %(mean_window_words)s::float8))"
    ),
)
