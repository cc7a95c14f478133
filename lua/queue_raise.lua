-- queue_raise: numbers may be issued up to a new ceiling, reserved in Postgres before.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, ceiling
-- Returns {'ok'} or {'lost', why}.
local q = q_open()
assert(#ARGV == 3, 'queue_raise: want ARGV epoch, last, ceiling')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
if tonumber(ARGV[3]) > q.ceiling then redis.call('HSET', q.meta, 'ceiling', ARGV[3]) end
return { 'ok' }
