-- What the sink keeps beside the data: positions, known streams, dead letters.

-- name: create_positions
-- The row is rewritten with every flush: the free half of a page keeps that in place.
CREATE TABLE {positions} (
    pipeline text COLLATE "C" NOT NULL,
    stream_arn text COLLATE "C" NOT NULL,
    stream_created_at timestamptz NOT NULL,
    shard text COLLATE "C" NOT NULL,
    position text,
    sequence_number numeric,
    epoch bigint NOT NULL,
    owner text,
    store_id text,
    last_arrival_at timestamptz,
    tip_at timestamptz,
    begun_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, stream_arn, stream_created_at, shard)
) WITH (fillfactor = 50)

-- name: create_streams
CREATE TABLE {streams} (
    pipeline text COLLATE "C" NOT NULL,
    stream_arn text COLLATE "C" NOT NULL,
    stream_created_at timestamptz NOT NULL,
    starts jsonb NOT NULL,
    tables text[] NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, stream_arn, stream_created_at)
)

-- name: add_positions_begun_at
ALTER TABLE {positions} ADD COLUMN begun_at timestamptz

-- name: add_streams_tables
-- Of streams begun before the column came nothing is known but their pipeline. The default lets
-- workers of that time go on beside this one.
ALTER TABLE {streams} ADD COLUMN tables text[] NOT NULL DEFAULT '{}'

-- name: create_dead_letters
-- record_index: which user record of its aggregate it is; where the source gave no sequence
-- number, which record of its fetch.
CREATE TABLE {dead_letters} (
    pipeline text COLLATE "C" NOT NULL,
    table_name text,
    stream text COLLATE "C" NOT NULL,
    shard text COLLATE "C" NOT NULL,
    sequence_number text COLLATE "C" NOT NULL,
    record_index bigint NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    raw bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 1,
    PRIMARY KEY (pipeline, stream, shard, sequence_number, record_index)
)

-- name: begin_stream
INSERT INTO {streams} (pipeline, stream_arn, stream_created_at, starts, tables)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING true

-- name: begin_positions
-- A shard that has a position already keeps it. What arrives from now on is owed to it, and from
-- the instant of a start by time ($7, microseconds since the epoch).
INSERT INTO {positions} AS stored
    (pipeline, stream_arn, stream_created_at, shard, position, sequence_number, epoch, tip_at,
     begun_at)
SELECT $1, $2, $3, start.shard, start.position, start.sequence_number::numeric, 0,
       least(now(), to_timestamp(start.since_us / 1000000.0)), now()
FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[])
    AS start (shard, position, sequence_number, since_us)
ORDER BY start.shard
ON CONFLICT (pipeline, stream_arn, stream_created_at, shard) DO UPDATE
    SET position = excluded.position,
        sequence_number = excluded.sequence_number,
        tip_at = excluded.tip_at,
        begun_at = excluded.begun_at,
        updated_at = now()
    WHERE stored.position IS NULL

-- name: is_known
SELECT EXISTS (
    SELECT FROM {streams}
    WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3
)

-- name: brought
-- This stream, and those that came to any of its tables, of now or before, in the order of that.
SELECT stream_arn, tables,
       (pipeline, stream_arn, stream_created_at) = ($1, $2, $3::timestamptz) AS is_mine
FROM {streams}
WHERE (pipeline, stream_arn, stream_created_at) = ($1, $2, $3::timestamptz)
   OR tables && $4::text[]
   OR tables && (SELECT mine.tables FROM {streams} AS mine
                 WHERE (mine.pipeline, mine.stream_arn, mine.stream_created_at)
                       = ($1, $2, $3::timestamptz))
ORDER BY begun_at

-- name: brought_last
-- Which came to this table last. Of streams begun before `tables` was kept, the pipeline tells.
SELECT stream_arn FROM {streams}
WHERE $2 = ANY (tables) OR (pipeline = $1 AND tables = '{}')
ORDER BY begun_at DESC LIMIT 1

-- name: lock_streams
-- Who adds tables at the same time sees what was added here.
LOCK TABLE {streams} IN SHARE ROW EXCLUSIVE MODE

-- name: add_tables
-- Whatever the clock says, it is behind all that were seen. $5 are tables that are its own no more.
UPDATE {streams}
SET begun_at = (SELECT greatest(clock_timestamp(), max(begun_at) + interval '1 us') FROM {streams}),
    tables = ARRAY(SELECT unnest(tables) EXCEPT ALL SELECT unnest($5::text[])) || $4::text[]
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3

-- name: begun
-- By any pipeline: two may write into one table.
SELECT stream_arn FROM {streams} WHERE pipeline = $1 OR tables && $2::text[]
GROUP BY stream_arn ORDER BY max(begun_at)

-- name: positions
SELECT shard, position, epoch, owner FROM {positions}
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3

-- name: position
SELECT position, epoch, owner FROM {positions}
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3 AND shard = $4

-- name: reached
SELECT shard, (extract(epoch FROM last_arrival_at) * 1000000)::bigint AS last_arrival_us,
       (extract(epoch FROM tip_at) * 1000000)::bigint AS tip_us,
       (extract(epoch FROM begun_at) * 1000000)::bigint AS begun_us
FROM {positions}
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3 AND shard = ANY ($4::text[])
  AND (last_arrival_at IS NOT NULL OR tip_at IS NOT NULL)

-- name: store_of
SELECT store_id FROM {positions}
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3 AND shard = $4

-- name: raise_fence
-- It waits for a transaction that holds the row: once it returns, every older fence has
-- either committed or is dead.
INSERT INTO {positions} AS stored
    (pipeline, stream_arn, stream_created_at, shard, epoch, owner, store_id)
VALUES ($1, $2, $3, $4, 1, $5, $6)
ON CONFLICT (pipeline, stream_arn, stream_created_at, shard) DO UPDATE
    SET epoch = stored.epoch + 1,
        owner = excluded.owner,
        store_id = excluded.store_id,
        updated_at = now()
RETURNING epoch, position

-- name: old_positions
SELECT shard, position FROM {positions}
WHERE pipeline = $1 AND stream_arn = $2 AND stream_created_at = $3 AND shard = ANY ($4::text[])
ORDER BY shard
FOR UPDATE

-- name: move_positions
-- $7 as in begin_positions.
INSERT INTO {positions} AS stored
    (pipeline, stream_arn, stream_created_at, shard, position, sequence_number, epoch, owner,
     tip_at, begun_at)
SELECT $1, $2, $3, moved.shard, moved.position, moved.sequence_number::numeric, 1, $8,
       least(now(), to_timestamp(moved.since_us / 1000000.0)), now()
FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[])
    AS moved (shard, position, sequence_number, since_us)
ORDER BY moved.shard
ON CONFLICT (pipeline, stream_arn, stream_created_at, shard) DO UPDATE
    SET position = excluded.position,
        sequence_number = excluded.sequence_number,
        epoch = stored.epoch + 1,
        owner = excluded.owner,
        last_arrival_at = NULL,
        tip_at = excluded.tip_at,
        begun_at = excluded.begun_at,
        updated_at = now()

-- name: lock_fences
-- The rows whose fence is still ours, locked in one order by every writer. The owner bears
-- a mark of its one raise: a failover may bring the same epoch a second time.
SELECT stored.stream_arn, stored.stream_created_at, stored.shard, stored.position
FROM {positions} AS stored
JOIN unnest($2::text[], $3::timestamptz[], $4::text[], $5::bigint[], $6::text[])
    AS ours (stream_arn, stream_created_at, shard, epoch, owner)
    USING (stream_arn, stream_created_at, shard, epoch, owner)
WHERE stored.pipeline = $1
ORDER BY stored.stream_arn, stored.stream_created_at, stored.shard
FOR UPDATE OF stored

-- name: store_positions
-- $7 milliseconds since the epoch, $8 how many seconds ago nothing lay behind the position.
UPDATE {positions} AS stored
SET position = ours.position,
    sequence_number = coalesce(ours.sequence_number::numeric, stored.sequence_number),
    last_arrival_at = greatest(stored.last_arrival_at, to_timestamp(ours.arrival_ms / 1000.0)),
    tip_at = coalesce(now() - make_interval(secs => ours.tip_age_seconds), stored.tip_at),
    updated_at = now()
FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::bigint[],
            $8::float8[])
    AS ours (stream_arn, stream_created_at, shard, position, sequence_number, arrival_ms,
             tip_age_seconds)
WHERE stored.pipeline = $1
  AND stored.stream_arn = ours.stream_arn
  AND stored.stream_created_at = ours.stream_created_at
  AND stored.shard = ours.shard

-- name: store_dead_letters
INSERT INTO {dead_letters} AS stored
    (pipeline, table_name, stream, shard, sequence_number, record_index, code, message, raw)
SELECT $1, letter.table_name, letter.stream, letter.shard, letter.sequence_number,
       letter.record_index, letter.code, letter.message, letter.raw
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
            $8::text[], $9::bytea[])
    AS letter (table_name, stream, shard, sequence_number, record_index, code, message, raw)
ON CONFLICT (pipeline, stream, shard, sequence_number, record_index) DO UPDATE
    SET attempts = stored.attempts + 1,
        code = excluded.code,
        message = excluded.message

-- name: dead_letters
SELECT table_name, stream, shard, sequence_number, record_index, code, message, raw, created_at
FROM {dead_letters} WHERE pipeline = $1

-- name: end_dead_letters
DELETE FROM {dead_letters} AS stored
USING unnest($2::text[], $3::text[], $4::text[], $5::bigint[])
    AS ended (stream, shard, sequence_number, record_index)
WHERE stored.pipeline = $1
  AND stored.stream = ended.stream
  AND stored.shard = ended.shard
  AND stored.sequence_number = ended.sequence_number
  AND stored.record_index = ended.record_index
RETURNING stored.stream, stored.shard, stored.sequence_number, stored.record_index

-- name: refuse_dead_letter
UPDATE {dead_letters} SET attempts = attempts + 1, code = $6, message = $7
WHERE pipeline = $1 AND stream = $2 AND shard = $3 AND sequence_number = $4 AND record_index = $5
RETURNING true

-- name: report_positions
SELECT stream_arn, shard, position, epoch, owner, last_arrival_at, tip_at, updated_at,
       extract(epoch FROM now() - last_arrival_at)::float8 AS age_seconds,
       extract(epoch FROM now() - greatest(last_arrival_at, tip_at))::float8 AS lag_seconds,
       extract(epoch FROM now() - updated_at)::float8 AS stored_seconds
FROM {positions} WHERE pipeline = $1
ORDER BY stream_arn, stream_created_at, shard

-- name: report_dead_letters
SELECT code, count(*) AS records FROM {dead_letters} WHERE pipeline = $1
GROUP BY code ORDER BY code
