-- The layout `document`: one table, one view and one staging table for each source table.
--
-- `chain` is what the order of changes at one instant needs, written and read by the core alone
-- but for its first byte: 0 or 1, the version is a creation time in microseconds, and its instant
-- the millisecond; 2, it is a sequence number. Where it is NULL nothing is known of the row's
-- instant, and any change of this version replaces it.
--
-- `{rows}` stands for the rows of one write: the staging table, or arrays of a prepared statement.

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: create_table
CREATE TABLE {table} (
    {key_columns},
    item jsonb{compression},
    generation bigint NOT NULL DEFAULT 0,
    version numeric NOT NULL,
    deleted boolean NOT NULL,
    chain bytea,
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
    deleted boolean NOT NULL,
    chain bytea,
    ordinal integer NOT NULL
) ON COMMIT DELETE ROWS

-- name: unnested
-- A table for `{rows}`. Items are joined by line feeds, which their JSON doesn't hold.
(SELECT {staged_keys}, item, version, item IS NULL AS deleted, chain,
        (ordinal - 1)::integer AS ordinal
 FROM unnest({arrays}) WITH ORDINALITY AS sent ({names}, ordinal))

-- name: holds_data
SELECT EXISTS (SELECT FROM {table})

-- name: merge
-- $1 is the generation. Rows are taken in key order, so that two writers meet the rows
-- they share in one order. A stored row is replaced by a newer version only; one of the same
-- instant is left to `tied`.
INSERT INTO {table} AS stored ({keys}, item, generation, version, deleted, chain)
SELECT {keys}, item, $1::bigint, version, deleted, chain FROM {rows} AS staged ORDER BY {keys}
ON CONFLICT ({keys}) DO UPDATE
    SET item = excluded.item,
        generation = excluded.generation,
        version = excluded.version,
        deleted = excluded.deleted,
        chain = excluded.chain
    WHERE CASE
        WHEN excluded.generation <> stored.generation
            THEN excluded.generation > stored.generation
        WHEN stored.chain IS NULL
            THEN excluded.version >= stored.version
        WHEN excluded.chain IS NULL OR get_byte(excluded.chain, 0) = 2
            THEN excluded.version > stored.version
        ELSE trunc(excluded.version, -3) > stored.version
    END

-- name: count_equal
-- After the merge: rows that are stored just so, those just written among them; and how many
-- are of the stored row's instant otherwise.
SELECT count(*) FILTER (WHERE compared.is_equal) AS equal,
       count(*) FILTER (WHERE NOT compared.is_equal AND {same_instant}) AS tied
FROM {rows} AS staged JOIN {table} AS stored USING ({keys})
CROSS JOIN LATERAL (
    SELECT stored.version = staged.version AND stored.chain IS NOT DISTINCT FROM staged.chain
) AS compared (is_equal)
WHERE stored.generation = $1::bigint

-- name: tied
-- What is stored of those; the merge locked it.
SELECT staged.ordinal, stored.item::text, stored.version::bigint, stored.chain
FROM {rows} AS staged JOIN {table} AS stored USING ({keys})
WHERE stored.generation = $1::bigint AND {same_instant}
  AND (stored.version, stored.chain) IS DISTINCT FROM (staged.version, staged.chain)

-- name: settle
-- What the core made of them.
UPDATE {table} AS stored
SET item = settled.item::jsonb,
    version = settled.version::numeric,
    deleted = settled.item IS NULL,
    chain = settled.chain
FROM {rows} AS staged
JOIN unnest($1::integer[], $2::text[], $3::text[], $4::bytea[])
    AS settled (ordinal, item, version, chain) USING (ordinal)
WHERE {same_key}
