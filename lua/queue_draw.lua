-- queue_draw: one step of the draw writes the next numbers, lowest first. Promotion
-- never passes what is not written yet.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, seed (hex), the number to go on at, registration index of each number from there...
-- Returns {'ok', next number} (the step is done, or another instance did it) or {'lost', why}.
local q = q_open()
assert(#ARGV >= 4, 'queue_draw: want ARGV epoch, last, seed, next, index...')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
redis.call('HSETNX', q.meta, 'seed', ARGV[3])
local number = tonumber(ARGV[4])
if q.drawNext == number and number <= q.drawHi then
  local add, drop = {}, {}
  for i = 5, #ARGV do
    local user = redis.call('ZRANGEBYSCORE', q.reg, ARGV[i], ARGV[i], 'LIMIT', 0, 1)[1]
    if user then
      add[#add + 1], add[#add + 2] = string.format('%.0f', number), user
      drop[#drop + 1] = user
      -- After a loss there are older tokens for this number: it stands here now, and does so once.
      if q.epoch > 1 then q_mark(q, number) end
    end
    number = number + 1
  end
  if #add > 0 then
    redis.call('ZADD', q.wait, unpack(add))
    redis.call('ZREM', q.reg, unpack(drop))
  end
  q.drawNext = number
  redis.call('HSET', q.meta, 'drawNext', string.format('%.0f', number))
  q_count(q, 'gone', 1)
  q_promote(q)
end
return { 'ok', q.drawNext }
