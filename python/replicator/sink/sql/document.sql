-- The layout `document`: one table, one view and one staging table for each source table.

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: create_table
CREATE TABLE {table} (
    {key_columns},
    item jsonb{compression},
    generation bigint NOT NULL DEFAULT 0,
    version numeric NOT NULL,
    deleted boolean NOT NULL,
    PRIMARY KEY ({keys})
)

-- name: create_view
CREATE VIEW {view} AS
    SELECT {keys}, item, version FROM {table} WHERE NOT deleted

-- name: create_staging
-- One for each connection and table, made once: making it costs far more than emptying it.
CREATE TEMPORARY TABLE IF NOT EXISTS {staging} (
    {key_columns},
    item jsonb{compression},
    version numeric NOT NULL,
    deleted boolean NOT NULL
) ON COMMIT DELETE ROWS

-- name: holds_data
SELECT EXISTS (SELECT FROM {table})

-- name: merge
-- $1 is the generation. Rows are taken in key order, so that two writers meet the rows
-- they share in one order. A stored row is replaced by a newer version only.
INSERT INTO {table} AS stored ({keys}, item, generation, version, deleted)
SELECT {keys}, item, $1::bigint, version, deleted FROM {staging} ORDER BY {keys}
ON CONFLICT ({keys}) DO UPDATE
    SET item = excluded.item,
        generation = excluded.generation,
        version = excluded.version,
        deleted = excluded.deleted
    WHERE (excluded.generation, excluded.version) > (stored.generation, stored.version)

-- name: count_equal
-- After the merge: staged rows whose version is the stored one, the rows just written
-- among them; and how many of these are another change than the stored one. What this very
-- transaction wrote isn't compared: that would read every item again.
SELECT count(*) AS equal,
       count(*) FILTER (
           WHERE CASE
               WHEN stored.xmin = pg_current_xact_id()::xid THEN false
               ELSE (staged.item, staged.deleted) IS DISTINCT FROM (stored.item, stored.deleted)
           END
       ) AS tied
FROM {staging} AS staged JOIN {table} AS stored USING ({keys})
WHERE stored.generation = $1::bigint AND stored.version = staged.version

-- name: create_before
CREATE TEMPORARY TABLE IF NOT EXISTS {before} (
    {key_columns},
    before jsonb
) ON COMMIT DELETE ROWS

-- name: settle_ties
-- Two changes of one key at one instant: the later one is that which began with the item
-- that the other left. Where the stored one left none and the staged one began with none
-- (NULL), it may be an insert from before the delete, delivered again: that is ambiguous,
-- and the tombstone stays.
WITH tied AS (
    SELECT {keys}, staged.item, staged.deleted,
           stored.item = first.before AS is_later,
           stored.deleted AND first.before IS NULL AS is_ambiguous
    FROM {staging} AS staged
    JOIN {before} AS first USING ({keys})
    JOIN {table} AS stored USING ({keys})
    WHERE stored.generation = $1::bigint
      AND stored.version = staged.version
      AND (staged.item, staged.deleted) IS DISTINCT FROM (stored.item, stored.deleted)
), settled AS (
    UPDATE {table} AS stored
    SET item = staged.item, deleted = staged.deleted
    FROM tied AS staged
    WHERE {same_key} AND staged.is_later
    RETURNING 1
)
SELECT (SELECT count(*) FROM settled) AS later,
       (SELECT count(*) FROM tied WHERE is_ambiguous) AS ambiguous
