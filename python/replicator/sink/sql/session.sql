-- What a connection is told once, and the locks that belong to a session.

-- name: configure
-- $1 milliseconds a statement may take, $2 milliseconds it may wait for a lock.
-- A session that died in mid-transaction must not hold a shard's row for ever, so the
-- server itself ends one that idles there or whose peer no longer answers.
-- `synchronous_commit` is raised only where a role has switched it off: a position
-- counts once it is durable.
SELECT set_config('statement_timeout', $1, false),
       set_config('idle_in_transaction_session_timeout', $1, false),
       set_config('lock_timeout', $2, false),
       set_config('tcp_keepalives_idle', '15', false),
       set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('tcp_user_timeout', '30000', false),
       set_config('client_min_messages', 'warning', false),
       set_config('jit', 'off', false),
       set_config('synchronous_commit',
                  CASE current_setting('synchronous_commit')
                      WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,
                  false)

-- name: watch_client
-- $1 milliseconds. A statement whose client is gone ends that soon after; otherwise it would
-- go on to its end or its deadline, with all its locks. Servers before 14 can't look, nor
-- can those of some operating systems, which refuse it (22023).
SELECT CASE WHEN current_setting('client_connection_check_interval', true) IS NOT NULL
            THEN set_config('client_connection_check_interval', $1, false) END

-- name: end_idle
-- $1 milliseconds. From 14 on the server itself ends a session that is idle that long.
SELECT CASE WHEN current_setting('idle_session_timeout', true) IS NOT NULL
            THEN set_config('idle_session_timeout', $1, false) END

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- name: savepoint
SAVEPOINT careful

-- name: release
RELEASE SAVEPOINT careful

-- name: back
ROLLBACK TO SAVEPOINT careful

-- name: lock_ddl
-- Two processes that start together make each object once.
SELECT pg_advisory_xact_lock($1)

-- name: hold_store
-- Shared: all processes of one lease store hold it together. It waits only for one who
-- looks whether any is alive.
SELECT pg_advisory_lock_shared($1)

-- name: try_store
-- Exclusive: it succeeds only when no process of that lease store is alive.
SELECT pg_try_advisory_lock($1)

-- name: release_store
SELECT pg_advisory_unlock($1)
