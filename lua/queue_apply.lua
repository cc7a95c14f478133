-- queue_apply: changed settings and facts, in effect at once.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, settings version, capacity, (field, value)...; an empty value: none
-- Seats added or taken away move `remaining` by as many. Returns {'ok'} or {'lost', why}.
local q = q_open()
assert(#ARGV >= 4 and #ARGV % 2 == 0, 'queue_apply: want ARGV epoch, last, version, capacity, (field, value)...')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
local capacity = tonumber(ARGV[4])
if tonumber(ARGV[3]) >= (q.settings or 0) then
  for i = 5, #ARGV, 2 do
    if ARGV[i + 1] == '' then
      redis.call('HDEL', q.meta, ARGV[i])
      q[ARGV[i]] = nil
    else
      redis.call('HSET', q.meta, ARGV[i], ARGV[i + 1])
      q[ARGV[i]] = tonumber(ARGV[i + 1])
    end
  end
  redis.call('HSET', q.meta, 'settings', ARGV[3])
end
if capacity ~= q.capacity then
  q_add_remaining(q, capacity - (q.capacity or capacity))
  redis.call('HSET', q.meta, 'capacity', capacity)
end
q_promote(q)
return { 'ok' }
