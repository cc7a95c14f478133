-- queue_init: an epoch begins in this Redis. What survived stays; numbers go on above the
-- ceiling of the epoch before, and while it recovers nobody new is admitted.
--   KEYS   as the prelude says; KEYS[8..] string seats of every schedule
--   ARGV   epoch, base (numbers start above it), ceiling, served before, recover ms, then
--          (field, value)... of the settings and facts
-- `remaining` among them is what Postgres says. Seats that stand here have the word before it: they are what a sale is
-- taken off when it is settled, once, be it in Postgres already or not. Only when they say that all is sold, and Postgres
-- does not, is it believed: that ends places, and the repair that follows counts anew anyway.
-- Returns {'ok'}, or {'newer', epoch} when another instance has gone further.
local q = q_open()
assert(#ARGV >= 5 and #ARGV % 2 == 1, 'queue_init: want ARGV epoch, base, ceiling, served, recover ms, (field, value)...')
local epoch = tonumber(ARGV[1])
if q.epoch and q.epoch >= epoch then return { 'newer', q.epoch } end
local last = math.max(q.last or 0, tonumber(ARGV[2]))
local served = math.max(q.served or 0, tonumber(ARGV[4]))
local text = function(number) return string.format('%.0f', number) end
local fields = {}
local unsold = q_unsold()
for i = 6, #ARGV, 2 do
  local value = ARGV[i + 1]
  -- A draw whose registrations are still here (an older state may have them again) is written on.
  if ARGV[i] == 'drawNext' and redis.call('EXISTS', q.reg) == 1 then value = text(q.drawNext or q.drawLo + 1) end
  if ARGV[i] == 'remaining' and unsold and unsold > 0 then value = text(unsold) end
  fields[#fields + 1], fields[#fields + 2] = ARGV[i], value
end
if #fields > 0 then redis.call('HSET', q.meta, unpack(fields)) end
-- A first epoch has nothing to recover: everybody up to its base has been served.
local recover = tonumber(ARGV[5])
redis.call('HSET', q.meta, 'epoch', epoch, 'last', text(last), 'ceiling', ARGV[3], 'served', text(served),
  'recoverUntil', text(recover > 0 and q.now + recover or 0), 'replid', q_store_id(), 'runid', q_process_id(),
  'gone', (q.gone or 0) + 1, 'before', text(last))
redis.call('HDEL', q.meta, 'returned')
redis.call('DEL', q.back)
return { 'ok' }
