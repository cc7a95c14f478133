-- queue_init: an epoch begins in this Redis. What survived stays; numbers go on above the
-- ceiling of the epoch before, and while it recovers nobody new is admitted.
--   KEYS   as the prelude says; KEYS[8..] string seats of every schedule
--   ARGV   epoch, base (numbers start above it), ceiling, served before, recover ms, served a poll interval before the loss,
--          the newest reading that anybody has seen (the script's clock; -1: this is a loss, whatever stands here), the
--          highest number that anybody has seen, numbers never issued ("above-upto,..."), 1 where unpaid orders are to be
--          given their turns first, then (field, value)... of the settings and facts
-- A state of the epoch before that is at most five seconds of readings behind has survived: its places stay as they are, its
-- tokens count (see q_keeps), and admission goes on. Slots are kept for a while for people above its last number.
-- `remaining` among them is what Postgres says. Seats that stand here have the word before it: they are what a sale is
-- taken off when it is settled, once, be it in Postgres already or not. Only when they say that all is sold, and Postgres
-- does not, is it believed: that ends places, and the repair that follows counts anew anyway.
-- Returns {'ok'}, {'old'} (it has not survived), or {'newer', epoch} when another instance has gone further.
-- An append-only file that is written to disk every second loses less than this.
local SURVIVES_MS = 5000
-- Kept until everybody who works has polled, and this much.
local RESERVED_MS = 6500
-- So many epochs in a row may be taken over before older tokens are put back one by one.
local KEPT_MAX = 16
local q = q_open()
assert(#ARGV >= 10 and #ARGV % 2 == 0, 'queue_init: want ARGV epoch, base, ceiling, served, recover ms, served then, seen clock, seen last, skips, orders, (field, value)...')
local epoch = tonumber(ARGV[1])
if q.epoch and q.epoch >= epoch then return { 'newer', q.epoch } end
local seen, known = tonumber(ARGV[7]), tonumber(ARGV[8])
if seen >= 0 and (q.epoch ~= epoch - 1 or not q.clock or q.clock + SURVIVES_MS < seen) then return { 'old' } end
local before = q.last
local last = math.max(q.last or 0, tonumber(ARGV[2]))
local served = math.max(q.served or 0, tonumber(ARGV[4]))
local text = q_text
local fields = {}
local unsold = q_unsold()
for i = 11, #ARGV, 2 do
  local value = ARGV[i + 1]
  -- A draw whose registrations are still here (an older state may have them again) is written on.
  if ARGV[i] == 'drawNext' and redis.call('EXISTS', q.reg) == 1 then value = text(q.drawNext or q.drawLo + 1) end
  if ARGV[i] == 'remaining' and unsold and unsold > 0 then value = text(unsold) end
  fields[#fields + 1], fields[#fields + 2] = ARGV[i], value
end
if #fields > 0 then redis.call('HSET', q.meta, unpack(fields)) end
redis.call('HSET', q.meta, 'epoch', epoch, 'last', text(last), 'ceiling', ARGV[3], 'served', text(served), 'skips', ARGV[9],
  'replid', q_store_id(), 'runid', q_process_id(), 'gone', (q.gone or 0) + 1, 'before', text(last),
  'clock', text(q.now), 'clockAt', text(q.wall), 'due', text(q.now + Q_SLACK_MS))
if seen >= 0 then
  local kept, count = string.format('%.0f:%.0f', epoch - 1, before), 1
  for one in string.gmatch(q.kept, '[^,]+') do
    if count < KEPT_MAX then kept, count = kept .. ',' .. one, count + 1 end
  end
  local from = q.keptFrom or epoch - 1
  if count == KEPT_MAX then from = math.max(from, epoch - KEPT_MAX) end
  local free = math.max(0, q.maxWorking - redis.call('ZCARD', q.work))
  redis.call('HSET', q.meta, 'kept', kept, 'keptFrom', from,
    'reserve', text(math.min(free, math.max(0, known - before))), 'reserveUntil', text(q.now + RESERVED_MS))
  return { 'ok' }
end
-- A first epoch has nothing to recover: everybody up to its base has been served.
local recover = tonumber(ARGV[5])
redis.call('HSET', q.meta, 'recoverUntil', text(recover > 0 and q.now + recover or 0), 'recoverThen', ARGV[6], 'orders', ARGV[10])
if recover > 0 then redis.call('HSET', q.meta, 'recoverFrom', text(q.now)) else redis.call('HDEL', q.meta, 'recoverFrom') end
redis.call('HDEL', q.meta, 'returned', 'kept', 'keptFrom', 'reserve', 'reserveUntil')
return { 'ok' }
