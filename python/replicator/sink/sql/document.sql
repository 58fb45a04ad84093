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
-- among them.
SELECT count(*)
FROM {staging} AS staged JOIN {table} AS stored USING ({keys})
WHERE stored.generation = $1::bigint AND stored.version = staged.version
