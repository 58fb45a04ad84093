-- The SQLite lease store. One file serves every pipeline of the processes of one machine.

-- name: create_meta
CREATE TABLE IF NOT EXISTS meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- name: create_lease
CREATE TABLE IF NOT EXISTS lease (
    pipeline TEXT NOT NULL,
    shard_id TEXT NOT NULL,
    owner TEXT,
    counter INTEGER NOT NULL DEFAULT 0,
    checkpoint TEXT,
    PRIMARY KEY (pipeline, shard_id)
) WITHOUT ROWID;

-- name: keep_store_id
INSERT INTO meta (key, value) VALUES ('store_id', :store_id) ON CONFLICT (key) DO NOTHING;

-- name: store_id
SELECT value FROM meta WHERE key = 'store_id';

-- name: rows
SELECT pipeline, shard_id, owner, counter, checkpoint
FROM lease WHERE pipeline = :pipeline ORDER BY shard_id;

-- name: create
INSERT INTO lease (pipeline, shard_id) VALUES (:pipeline, :shard_id)
ON CONFLICT (pipeline, shard_id) DO NOTHING;

-- name: take
UPDATE lease SET owner = :owner, counter = counter + 1
WHERE pipeline = :pipeline AND shard_id = :shard_id AND counter = :counter;

-- name: renew
UPDATE lease SET counter = counter + 1
WHERE pipeline = :pipeline AND shard_id = :shard_id AND owner = :owner AND counter = :counter;

-- name: release
UPDATE lease SET owner = NULL, counter = counter + 1
WHERE pipeline = :pipeline AND shard_id = :shard_id AND owner = :owner AND counter = :counter;

-- name: checkpoint
UPDATE lease SET checkpoint = :checkpoint
WHERE pipeline = :pipeline AND shard_id = :shard_id;

-- name: delete
DELETE FROM lease WHERE pipeline = :pipeline AND shard_id = :shard_id;
