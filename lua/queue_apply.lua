-- queue_apply: changed settings and facts, in effect at once.
--   KEYS   as the prelude says; KEYS[8..] string seats of every schedule
--   ARGV   epoch, last number, settings version, seats of all schedules, seats not sold as Postgres says ('': the schedules
--          are what they were), (field, value)...; an empty value: none
-- Where the schedules have changed, `remaining` is what their seat states here say, or else what Postgres says: never a
-- difference, which a count that was made meanwhile may contain already. Returns {'ok'} or {'lost', why}.
local q = q_open()
assert(#ARGV >= 5 and #ARGV % 2 == 1, 'queue_apply: want ARGV epoch, last, version, capacity, remaining, (field, value)...')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
local capacity = tonumber(ARGV[4])
if tonumber(ARGV[3]) >= (q.settings or 0) then
  for i = 6, #ARGV, 2 do
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
if ARGV[5] ~= '' then
  local unsold, known = q_unsold(), tonumber(ARGV[5])
  local remaining = unsold and unsold > 0 and unsold or known
  q_add_remaining(q, remaining - (q.remaining or 0))
  redis.call('HSET', q.meta, 'capacity', capacity)
end
q_promote(q)
return { 'ok' }
