-- settle: make Redis show what Postgres says of one order. Idempotent; an older
-- version than the one already shown changes nothing.
--   KEYS[1..7]   the queue's (see prelude)
--   KEYS[8] string seats   KEYS[9] string owners   KEYS[10] zset holds
--   KEYS[11] hash hold     KEYS[12] string wake-up  KEYS[13] hash limit
--   ARGV[1..2] "0", "0": whether the queue has lost something does not matter here
--   ARGV[3..]  order id (16 bytes), version, 'held'|'sold'|'free', user id (16 bytes, '' for none),
--           deadline ms, schedule id, number of the place that the order was made from (0: none), until when the
--           order keeps that turn (ms; 0: no longer), until when the schedule is sold (ms; 0: not known), seat index...
-- With no index, the seats are those that the hold itself names.
-- Returns {"done"}, {"stale"}, {"absent"}, or {"taken", index...}: what could not be
-- given to this order because another one has it (the caller settles that one first).
assert(#KEYS == 13, 'settle: want 13 KEYS')
assert(#ARGV >= 11, 'settle: want at least 11 ARGV')

local seats, owners, holds, hold, wake, limit = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local order, version, want, user = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local deadline, schedule, number, keeps = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
local sales_end = tonumber(ARGV[11])

local q = q_open()
if redis.call('EXISTS', seats) == 0 or redis.call('EXISTS', limit) == 0 then
  return { 'absent' }
end
local known = tonumber(redis.call('HGET', hold, 'v') or '0')
if known > version then
  return { 'stale' }
end

local indices = {}
for at = 12, #ARGV do
  indices[#indices + 1] = tonumber(ARGV[at])
end
if #indices == 0 then
  for index in string.gmatch(redis.call('HGET', hold, 'x') or '', '%d+') do
    indices[#indices + 1] = tonumber(index)
  end
  user = user ~= '' and user or redis.call('HGET', hold, 'u') or ''
end

local length = redis.call('STRLEN', seats)
for _, index in ipairs(indices) do
  assert(index >= 0 and index < length, 'settle: seat index out of range')
end
local taken, sold_by = {}, 0
local goal = want == 'held' and HELD or want == 'sold' and SOLD or FREE
for _, index in ipairs(indices) do
  local byte, owner = byte_of(seats, index), owner_of(owners, index)
  local mine = owner == order
  if goal == FREE then
    if mine then
      if byte == SOLD then sold_by = sold_by - 1 end
      set_seat(seats, owners, index, FREE, NOBODY)
    end
  elseif mine or byte == FREE then
    if byte == SOLD then sold_by = sold_by - 1 end
    if goal == SOLD then sold_by = sold_by + 1 end
    set_seat(seats, owners, index, goal, order)
  else
    taken[#taken + 1] = index
  end
end

if user ~= '' then
  note_person(limit, user, order, goal == FREE and 0 or #indices)
end
if goal == HELD then
  redis.call('ZADD', holds, deadline, order)
  redis.call('SET', wake, '1', 'PX', math.max(1, deadline - q.now))
  redis.call('HSET', hold, 'v', version, 's', schedule, 'x', table.concat(indices, ','), 'u', user,
    'n', ARGV[9], 'e', keeps)
  redis.call('HSETNX', hold, 't', q.now)
  redis.call('PERSIST', hold)
else
  redis.call('ZREM', holds, order)
  redis.call('DEL', wake)
  redis.call('DEL', hold)
  redis.call('HSET', hold, 'v', version)
  redis.call('PEXPIRE', hold, FENCE_MS)
end
-- Once its sales have ended, a schedule's seats are not among those that remain.
local remains = sales_end == 0 or q.wall < sales_end
if sold_by ~= 0 and q.remaining and remains then q_add_remaining(q, -sold_by) end
-- What is sold completes the turn: the queue hears of it by an event.
local ended = user ~= '' and goal ~= SOLD and turn_order(q, user, number, order, goal == HELD and keeps or 0)
if ended and not q_lost(q) then q_promote(q) end
if #taken > 0 then
  table.insert(taken, 1, 'taken')
  return taken
end
return { 'done' }
