-- queue_end: places end, each only if it is still that very place, and the next are admitted.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, reason (D completed, G given up, F already noted as ended), then
--          (user id, number)...; after a D whoever the number belongs to is meant
-- Returns {'ok', how many ended}, or {'lost', why}.
local q = q_open()
assert(#ARGV >= 5 and #ARGV % 2 == 1, 'queue_end: want ARGV epoch, last, reason, (user, number)...')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
local reason, ended = ARGV[3], 0
for i = 4, #ARGV, 2 do
  local user, number = ARGV[i], tonumber(ARGV[i + 1])
  local waits = tonumber(redis.call('ZSCORE', q.wait, user))
  if q_working(q, user) == number then
    q_end_working(q, user, number, reason == 'F' and 'G' or reason)
    ended = ended + 1
  elseif waits == number then
    redis.call('ZREM', q.wait, user)
    redis.call('ZADD', q.ended, number, (reason == 'F' and 'G' or reason) .. user)
    q_count(q, reason == 'D' and 'completed' or 'left', 1)
    q_count(q, 'gone', 1)
    ended = ended + 1
  elseif tonumber(redis.call('ZSCORE', q.reg, user)) == number then
    redis.call('ZREM', q.reg, user)
    redis.call('ZADD', q.ended, -number, 'G' .. user) -- an index, not a number: somebody else may draw that
    q_count(q, 'left', 1)
    ended = ended + 1
  end
end
q_promote(q)
return { 'ok', ended }
