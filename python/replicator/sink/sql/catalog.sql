-- What the server is and what already stands there. Reads only.

-- name: server
SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_version') AS version_text,
       current_setting('server_encoding') AS encoding,
       current_database() AS database,
       current_user::text AS role,
       current_schema()::text AS schema,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       has_database_privilege(current_database(), 'TEMPORARY') AS may_stage,
       -- From 14 on, and only where the server was built with it.
       coalesce((SELECT 'lz4' = ANY (enumvals) FROM pg_settings
                 WHERE name = 'default_toast_compression'), false) AS has_lz4

-- name: schema
SELECT has_schema_privilege(oid, 'USAGE') AS may_use,
       has_schema_privilege(oid, 'CREATE') AS may_create
FROM pg_namespace WHERE nspname = $1

-- name: relation
SELECT c.oid::bigint AS id, c.relkind::text AS kind,
       has_table_privilege(c.oid, 'SELECT') AS may_select,
       has_table_privilege(c.oid, 'INSERT') AS may_insert,
       has_table_privilege(c.oid, 'UPDATE') AS may_update,
       has_table_privilege(c.oid, 'DELETE') AS may_delete,
       pg_has_role(c.relowner, 'USAGE') AS may_alter
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2

-- name: columns
SELECT attname::text AS name,
       format_type(atttypid, atttypmod) AS type,
       attnotnull AND NOT atthasdef AND attidentity = '' AS must_be_given
FROM pg_attribute
WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped
ORDER BY attnum

-- name: primary_key
SELECT a.attname::text AS name
FROM pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, place)
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
WHERE i.indrelid = $1::bigint::oid AND i.indisprimary
ORDER BY k.place

-- name: exists
-- $1 is a quoted name; NULL where no such relation can be seen.
SELECT to_regclass($1) IS NOT NULL
