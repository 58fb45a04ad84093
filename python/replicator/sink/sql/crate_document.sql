-- A table of items in CrateDB.
--
-- `item` is what CrateDB's types can hold, for queries; `exact` is the item as it is, in plain JSON.
-- `version` is a text that sorts: generation, `-`, instant, `.`, microseconds in the instant; up to the point, its
-- first 51 characters, it names the instant. `chain` is what the order of changes at one instant needs: see
-- `_core.Rows`.
--
-- There are no transactions and no WHERE in DO UPDATE. A row that isn't newer loses its version, and NOT NULL refuses
-- it: so the answer tells which rows those were, and nothing of them is written.

-- name: create_table
CREATE TABLE IF NOT EXISTS {table} (
    {key_columns},
    item OBJECT({policy}),
    exact TEXT INDEX OFF STORAGE WITH (columnstore = false),
    version TEXT NOT NULL,
    deleted BOOLEAN NOT NULL,
    chain TEXT INDEX OFF STORAGE WITH (columnstore = false),
    PRIMARY KEY ({keys})
){clustered}{options}

-- name: upsert
INSERT INTO {table} ({keys}, item, exact, version, deleted, chain)
VALUES ({places}, ?, ?, ?, ?, ?)
ON CONFLICT ({keys}) DO UPDATE SET
    item = excluded.item,
    exact = excluded.exact,
    deleted = excluded.deleted,
    chain = excluded.chain,
    version = CASE WHEN LEFT(excluded.version, 51) > LEFT(version, 51) THEN excluded.version END

-- name: stored
-- `{any_key}` is a chain of OR: that, and neither IN nor ANY, is a look-up by primary key, which sees what no refresh
-- has shown yet.
SELECT {keys}, version, chain FROM {table} WHERE {any_key}

-- name: tied
SELECT {keys}, version, chain, exact, "_seq_no", "_primary_term" FROM {table} WHERE {any_key}

-- name: settle
UPDATE {table} SET item = ?, exact = ?, version = ?, deleted = ?, chain = ?
WHERE {one_key} AND "_seq_no" = ? AND "_primary_term" = ?

-- name: refresh
REFRESH TABLE {table}

-- name: holds_data
SELECT version FROM {table} LIMIT 1
