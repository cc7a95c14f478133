-- queue_end: places end, each only if it is still that very place, and the next are admitted.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, reason (D completed, G given up, F known to Postgres as ended), then
--          (user id, number)...; a negative number is a registration's index
-- An F is true of any state, also of one that is about to be replaced: nobody is admitted then.
-- Returns {'ok', how many ended}, or {'lost', why}.
local q = q_open()
assert(#ARGV >= 5 and #ARGV % 2 == 1, 'queue_end: want ARGV epoch, last, reason, (user, number)...')
local reason, ended = ARGV[3], 0
local lost = q_lost(q)
if lost and (reason ~= 'F' or lost == 'missing') then return { 'lost', lost } end
for i = 4, #ARGV, 2 do
  local user, number = ARGV[i], tonumber(ARGV[i + 1])
  local waits = tonumber(redis.call('ZSCORE', q.wait, user))
  if q_working(q, user) == number then
    q_end_working(q, user, number, reason == 'F' and 'G' or reason)
    ended = ended + 1
  elseif waits == number then
    redis.call('ZREM', q.wait, user)
    if q.returned then redis.call('HDEL', q.place, 'r' .. user) end
    redis.call('ZADD', q.ended, number, (reason == 'F' and 'G' or reason) .. user)
    q_count(q, reason == 'D' and 'completed' or 'left', 1)
    q_count(q, 'gone', 1)
    ended = ended + 1
  elseif tonumber(redis.call('ZSCORE', q.reg, user)) == -number then
    redis.call('ZREM', q.reg, user)
    redis.call('ZADD', q.ended, number, 'G' .. user) -- an index, not a number: somebody else may draw that
    q_count(q, 'left', 1)
    ended = ended + 1
  end
end
if not lost then q_promote(q) end
return { 'ok', ended }
