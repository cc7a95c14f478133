-- hold: take seats for one order, all or none, for a person who is in the working set.
-- Being here is a check-in: it is noted even when no seat is to be had.
--   KEYS[1..7]   the queue's (see prelude)
--   KEYS[8] string seats   KEYS[9] string owners   KEYS[10] zset holds
--   KEYS[11] hash hold     KEYS[12] string wake-up  KEYS[13] hash limit
--   ARGV[1..2] epoch and number of the person's place ("0", "0": the place is not asked, for
--           an order that was paid late)
--   ARGV[3..]  order id (16 bytes), version, user id (16 bytes), schedule id, hold ttl ms when
--           the queue names none, seats a person, holds that the turn has made as Postgres knows them (-1: not
--           asked), until when the schedule is sold and when its show starts (ms), then
--           'seats', index...                or
--           'best', count, (start, length, from, to)...   stretches of adjacent seats, best first:
--           the stretch is [start, start + length), the seats wanted of it are [from, to)
-- Returns {"held", deadline ms, ttl ms, index...}, {"lost", why}, {"absent"} (rebuild the seats, then
-- again), {"stopped"} (no sales now), {"place", "waiting"|"closed"|"ended"|"old"|"recovering"|"over"} (old: the token is of an
-- earlier epoch, put it back first; over: the turn takes no new holds any more),
-- {"sales_ended"}, {"count"} (count the turn's holds in Postgres, then again), {"exhausted"}, {"limit", seats had}, or {"taken", index...}.
assert(#KEYS == 13, 'hold: want 13 KEYS')
assert(#ARGV >= 13, 'hold: want at least 13 ARGV')

local seats, owners, holds, hold, wake, limit = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local order, version, user, schedule = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local ttl, limit_max, counted = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local sales_end, starts, mode = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12]
local number = tonumber(ARGV[2])

-- The middle of a row first: the distance of a window from it, doubled to stay whole.
local function off_centre(at, count, start, length)
  return math.abs((at * 2 + count) - (start * 2 + length))
end

-- The best window of `count` free seats in one stretch, or nil. `orphans`: may it leave a single seat?
local function best_window(states, count, orphans, start, length, from, to)
  local found, found_off
  local row = string.sub(states, start + 1, start + length)
  local gap_at, gap_end = string.find(row, '0+')
  while gap_at do
    local low, high = start + gap_at - 1, start + gap_end
    for at = math.max(low, from), math.min(high, to) - count do
      local left, right = at - low, high - at - count
      if orphans or (left ~= 1 and right ~= 1) then
        local off = off_centre(at, count, start, length)
        if not found or off < found_off then
          found, found_off = at, off
        end
      end
    end
    gap_at, gap_end = string.find(row, '0+', gap_end + 1)
  end
  return found
end

local function best(states, count)
  for tier = 1, 2 do
    for at = 14, #ARGV, 4 do
      local window = best_window(states, count, tier == 2, tonumber(ARGV[at]), tonumber(ARGV[at + 1]),
        tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
      if window then
        local picked = {}
        for index = window, window + count - 1 do picked[#picked + 1] = index end
        return picked
      end
    end
  end
  local picked = {}
  for at = 14, #ARGV, 4 do
    for index = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]) - 1 do
      if string.byte(states, index + 1) == FREE then
        picked[#picked + 1] = index
        if #picked == count then return picked end
      end
    end
  end
  return nil
end

local q = q_open()
if number > 0 then
  local lost = q_lost(q)
  if lost then return { 'lost', lost } end
end
local length = redis.call('STRLEN', seats)
if length == 0 or redis.call('EXISTS', limit) == 0 then
  return { 'absent' }
end
if number > 0 and redis.call('HEXISTS', limit, 'stopped') == 1 then
  return { 'stopped' }
end
ttl = q.holdTtl or ttl
-- No hold outlasts the beginning of its show.
local deadline = math.min(q.now + ttl, starts)
local turn
if number > 0 then
  local place, _, _, found = working_check_in(q, user, number)
  if place == 'shut' then place = 'closed' end
  -- A place of an earlier epoch comes back first, unless it is here already with the bounds of its turn.
  local epoch = tonumber(ARGV[1])
  local here = place == 'working' and q.now < found.holding
  if epoch < q.epoch and not here and (place == 'ended' or not q_keeps(q, epoch, number)) then place = 'old' end
  if place == 'ended' and q_recovering(q) then place = 'recovering' end
  if place ~= 'working' then return { 'place', place } end
  turn = found
end

-- The same order again (its first attempt died after this script): the same answer.
local known = redis.call('HMGET', hold, 'v', 'x')
if known[1] and known[2] and tonumber(known[1]) >= version then
  local held = { 'held', tonumber(redis.call('ZSCORE', holds, order) or deadline), ttl }
  for index in string.gmatch(known[2], '%d+') do held[#held + 1] = tonumber(index) end
  return held
end
if known[1] and tonumber(known[1]) > version then
  return { 'taken' }
end

if q.wall >= sales_end then return { 'sales_ended' } end
if turn then
  if q.now >= turn.holding then return { 'place', 'over' } end
  if not turn.holds and counted < 0 then return { 'count' } end
  turn.holds = turn.holds or counted
  if turn.holds >= Q_HOLDS_MAX then return { 'exhausted' } end
end

local indices = {}
if mode == 'best' then
  indices = best(redis.call('GET', seats), tonumber(ARGV[13]))
else
  for at = 13, #ARGV do indices[#indices + 1] = tonumber(ARGV[at]) end
end
local wanted = mode == 'best' and tonumber(ARGV[13]) or #indices
local had = seats_of_person(redis.call('HGET', limit, user) or '', order)
if had + wanted > limit_max then
  return { 'limit', had }
end
if not indices then
  return { 'taken' }
end
local taken = { 'taken' }
for _, index in ipairs(indices) do
  assert(index >= 0 and index < length, 'hold: seat index out of range')
  if byte_of(seats, index) ~= FREE and owner_of(owners, index) ~= order then taken[#taken + 1] = index end
end
if #taken > 1 then
  return taken
end

for _, index in ipairs(indices) do
  set_seat(seats, owners, index, HELD, order)
end
note_person(limit, user, order, #indices)
redis.call('ZADD', holds, deadline, order)
redis.call('SET', wake, '1', 'PX', math.max(1, deadline - q.now))
redis.call('DEL', hold)
redis.call('HSET', hold, 'v', version, 's', schedule, 'x', table.concat(indices, ','), 'u', user, 't', q.now,
  'n', ARGV[2], 'e', deadline)
if turn then turn_hold(q, user, number, turn, order, deadline) end
local held = { 'held', deadline, ttl }
for _, index in ipairs(indices) do held[#held + 1] = index end
return held
