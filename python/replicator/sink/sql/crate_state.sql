-- What the sink keeps beside the data in CrateDB: positions, known streams, dead letters.
--
-- `key` joins what a row is known by, so that many rows are found by one look-up. Times are microseconds since the
-- epoch, by the server's clock.

-- name: create_positions
CREATE TABLE IF NOT EXISTS {positions} (
    key TEXT PRIMARY KEY,
    pipeline TEXT NOT NULL,
    stream_arn TEXT NOT NULL,
    stream_created_at BIGINT NOT NULL,
    shard TEXT NOT NULL,
    position TEXT,
    sequence_number TEXT,
    epoch BIGINT NOT NULL,
    owner TEXT,
    store_id TEXT,
    last_arrival_us BIGINT,
    tip_us BIGINT,
    begun_us BIGINT,
    updated_us BIGINT NOT NULL
) CLUSTERED INTO 1 SHARDS

-- name: create_streams
-- Written first and in one step, it decides who begins; `starts` then become positions.
CREATE TABLE IF NOT EXISTS {streams} (
    key TEXT PRIMARY KEY,
    pipeline TEXT NOT NULL,
    stream_arn TEXT NOT NULL,
    stream_created_at BIGINT NOT NULL,
    starts TEXT NOT NULL,
    tables ARRAY(TEXT) NOT NULL,
    is_complete BOOLEAN NOT NULL,
    begun_us BIGINT NOT NULL
) CLUSTERED INTO 1 SHARDS

-- name: create_dead_letters
-- `raw` is base64: the record's own bytes.
CREATE TABLE IF NOT EXISTS {dead_letters} (
    key TEXT PRIMARY KEY,
    pipeline TEXT NOT NULL,
    table_name TEXT,
    stream TEXT NOT NULL,
    shard TEXT NOT NULL,
    sequence_number TEXT NOT NULL,
    record_index BIGINT NOT NULL,
    code TEXT NOT NULL,
    message TEXT INDEX OFF STORAGE WITH (columnstore = false),
    raw TEXT INDEX OFF STORAGE WITH (columnstore = false),
    created_us BIGINT NOT NULL,
    attempts BIGINT NOT NULL
) CLUSTERED INTO 1 SHARDS

-- name: begin_stream
INSERT INTO {streams}
    (key, pipeline, stream_arn, stream_created_at, starts, tables, is_complete, begun_us)
VALUES (?, ?, ?, ?, ?, ?, false, CURRENT_TIMESTAMP::BIGINT * 1000)
ON CONFLICT DO NOTHING

-- name: begun_stream
SELECT starts, is_complete, begun_us FROM {streams} WHERE key = ?

-- name: begin_positions
-- A shard that has a position already keeps it.
INSERT INTO {positions}
    (key, pipeline, stream_arn, stream_created_at, shard, position, sequence_number, epoch, tip_us,
     begun_us, updated_us)
VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, CURRENT_TIMESTAMP::BIGINT * 1000)
ON CONFLICT (key) DO UPDATE SET
    sequence_number = CASE WHEN position IS NULL THEN excluded.sequence_number ELSE sequence_number END,
    tip_us = CASE WHEN position IS NULL THEN excluded.tip_us ELSE tip_us END,
    begun_us = CASE WHEN position IS NULL THEN excluded.begun_us ELSE begun_us END,
    position = COALESCE(position, excluded.position)

-- name: complete_stream
UPDATE {streams} SET is_complete = true WHERE key = ?

-- name: refresh_streams
REFRESH TABLE {streams}

-- name: begun
SELECT pipeline, stream_arn, tables FROM {streams} ORDER BY begun_us

-- name: brought
-- Every stream, in the order in which each came to its newest tables.
SELECT key, stream_arn, tables, begun_us FROM {streams} ORDER BY begun_us

-- name: own_tables
-- As the row is now, for `add_tables`.
SELECT tables, "_seq_no", "_primary_term" FROM {streams} WHERE key = ?

-- name: add_tables
-- Whatever the clock says, it is behind all that were seen.
UPDATE {streams} SET tables = ?, begun_us = GREATEST(CURRENT_TIMESTAMP::BIGINT * 1000, ?::BIGINT)
WHERE key = ? AND "_seq_no" = ? AND "_primary_term" = ?

-- name: refresh_positions
REFRESH TABLE {positions}

-- name: positions
SELECT shard, position, epoch, owner FROM {positions}
WHERE pipeline = ? AND stream_arn = ? AND stream_created_at = ?

-- name: looked_up
-- See `stored` of the items.
SELECT key, shard, position, epoch, owner, store_id, last_arrival_us, tip_us, begun_us, "_seq_no",
       "_primary_term", CURRENT_TIMESTAMP::BIGINT * 1000 - updated_us AS stored_us
FROM {positions} WHERE {any_key}

-- name: raise_fence
INSERT INTO {positions}
    (key, pipeline, stream_arn, stream_created_at, shard, epoch, owner, store_id, updated_us)
VALUES (?, ?, ?, ?, ?, 1, ?, ?, CURRENT_TIMESTAMP::BIGINT * 1000)
ON CONFLICT (key) DO UPDATE SET
    epoch = epoch + 1,
    owner = excluded.owner,
    store_id = excluded.store_id,
    updated_us = excluded.updated_us
RETURNING epoch, position

-- name: move_position
-- The last parameter but one: the instant of a start by time.
INSERT INTO {positions}
    (key, pipeline, stream_arn, stream_created_at, shard, position, sequence_number, tip_us, owner,
     epoch, begun_us, updated_us)
VALUES (?, ?, ?, ?, ?, ?, ?, LEAST(CURRENT_TIMESTAMP::BIGINT * 1000, ?::BIGINT), ?, 1,
        CURRENT_TIMESTAMP::BIGINT * 1000, CURRENT_TIMESTAMP::BIGINT * 1000)
ON CONFLICT (key) DO UPDATE SET
    position = excluded.position,
    sequence_number = excluded.sequence_number,
    epoch = epoch + 1,
    owner = excluded.owner,
    last_arrival_us = NULL,
    tip_us = excluded.tip_us,
    begun_us = excluded.begun_us,
    updated_us = excluded.updated_us

-- name: store_position
-- Of the row that was read before the data was written, and of no other state of it: whoever raised the fence since
-- then has changed it. The fourth parameter is how many microseconds ago nothing lay behind the position.
UPDATE {positions} SET
    position = ?,
    sequence_number = COALESCE(?, sequence_number),
    last_arrival_us = GREATEST(last_arrival_us, ?::BIGINT),
    tip_us = COALESCE(CURRENT_TIMESTAMP::BIGINT * 1000 - ?::BIGINT, tip_us),
    updated_us = CURRENT_TIMESTAMP::BIGINT * 1000
WHERE key = ? AND "_seq_no" = ? AND "_primary_term" = ?

-- name: store_dead_letter
INSERT INTO {dead_letters}
    (key, pipeline, table_name, stream, shard, sequence_number, record_index, code, message, raw,
     created_us, attempts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CURRENT_TIMESTAMP::BIGINT * 1000, 1)
ON CONFLICT (key) DO UPDATE SET
    attempts = attempts + 1,
    code = excluded.code,
    message = excluded.message

-- name: refresh_dead_letters
REFRESH TABLE {dead_letters}

-- name: dead_letters
SELECT table_name, stream, shard, sequence_number, record_index, code, message, raw, created_us
FROM {dead_letters} WHERE pipeline = ?

-- name: end_dead_letter
DELETE FROM {dead_letters} WHERE key = ?

-- name: refuse_dead_letter
UPDATE {dead_letters} SET attempts = attempts + 1, code = ?, message = ? WHERE key = ?

-- name: report_positions
SELECT stream_arn, shard, position, epoch, owner, last_arrival_us, tip_us, updated_us,
       CURRENT_TIMESTAMP::BIGINT * 1000 AS now_us
FROM {positions} WHERE pipeline = ?
ORDER BY stream_arn, stream_created_at, shard

-- name: report_dead_letters
SELECT code, COUNT(*) AS records FROM {dead_letters} WHERE pipeline = ?
GROUP BY code ORDER BY code

-- name: server
SELECT version['number'] AS version FROM sys.nodes LIMIT 1

-- name: relation
SELECT settings['translog']['durability'] AS durability FROM information_schema.tables
WHERE table_schema = ? AND table_name = ?

-- name: columns
SELECT column_name, data_type, is_nullable FROM information_schema.columns
WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position

-- name: primary_key
SELECT column_name FROM information_schema.key_column_usage
WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position
