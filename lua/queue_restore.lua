-- queue_restore: places of earlier epochs come back by their tokens, each once an epoch.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, entries: 50 bytes each, user id (16), number (8), deadline (8; 0: it
--          waited), until when its turn takes holds (8), when it ends at the latest (8), may return (0: too late, unless it stands here; 1: yes; 2: Postgres knows that its turn has ended),
--          registered (1: an index before the draw); then until when the callers wait (ms by Redis's clock; 0: not known)
-- Returns {'ok', epoch, now, last, ceiling, outcomes} as queue_enter does, with code 9: the turn has ended, and 10: the
-- draw is under way, so that its number is told when the seed is; {'late'} (the callers have given up: nothing was done), or {'lost', why}.
local q = q_open()
assert(#ARGV == 4 and #ARGV[3] % 50 == 0, 'queue_restore: want ARGV epoch, last, entries, by')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
if q_late(q, ARGV[4]) then return { 'late' } end
q_suspend(q)

local back = 0
-- What stands in Redis under this person: the very place, another one, or nothing.
local function present(user, number)
  local held, _, deadline = q_working(q, user)
  if held and held ~= number and deadline > q.now then return 9 end -- and this is no check-in of it
  local tag, value, waits, turn = working_check_in(q, user, nil)
  if tag == 'working' then return 2, value, nil, turn end
  if tag == 'closed' or tag == 'shut' then return 6 end
  if tag == 'waiting' then return waits == number and 1 or nil, value, waits end
  return nil
end

-- The unpaid orders of a turn, with their deadlines; nil where the seats do not stand in this Redis.
local function orders_of(user, number)
  if redis.call('EXISTS', q.base .. 'limit') == 0 then return nil end
  local records, orders = redis.call('HGET', q.base .. 'limit', user) or '', {}
  for at = 1, #records, 17 do
    local hex = q_hex(string.sub(records, at, at + 15))
    local id = string.gsub(hex, '^(' .. string.rep('%x', 8) .. ')(%x%x%x%x)(%x%x%x%x)(%x%x%x%x)', '%1-%2-%3-%4-')
    local of, keeps = unpack(redis.call('HMGET', q.base .. 'hold:' .. id, 'n', 'e'))
    if tonumber(of) == number then orders[hex] = tonumber(keeps) end
  end
  return orders
end

-- The turn goes on within the bounds that it had, and only as long as its orders keep it.
local function turn_of(user, number, deadline, holding, last)
  if holding == 0 then return nil, 0 end
  local orders = orders_of(user, number)
  local turn = { holding = holding, last = last, orders = orders or {} }
  return turn, orders and q_turn_end(turn) or math.min(deadline, last)
end

-- A turn that began before the loss is not begun anew at the head of the line: it waits there for a slot.
local function keep_turn(user, number, turn)
  redis.call('HSET', q.meta, 'returned', 1)
  redis.call('HSET', q.place, 'r' .. user, string.format('%.0f:', number) .. q_turn_text(q, turn))
  q.returned = 1
end

local function put_back(user, number, deadline, registered, holding, last)
  local code, value, other, found = present(user, number)
  local turn
  turn, deadline = turn_of(user, number, deadline, holding, last)
  -- An older state may have in line who was admitted since: the proof of that counts.
  local admitted = code == 1 and deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking
  if code == 1 and turn and not admitted then keep_turn(user, number, turn) end
  -- Its unpaid order was given the turn before it came itself: its own bounds count.
  if code == 2 and turn and found and turn.holding > found.holding then
    found.holding, found.last = turn.holding, math.max(turn.last, found.last)
    value = q_turn_end(found)
    q_set_working(q, user, number, 'A', value, found)
  end
  if code and not admitted then return code, code == 2 and value or 0, found end
  -- Who entered anew meanwhile keeps the better of the two numbers.
  if other and other < number then return 9, 0 end
  if turn and deadline <= q.now and not code then return 9, 0 end
  -- No bit for a registration: its index is also a number, and somebody else may draw that.
  if registered then
    redis.call('ZADD', q.reg, number, user)
    if not q.drawLo or number <= q.drawLo then
      q.drawLo = number - 1
      redis.call('HSET', q.meta, 'drawLo', string.format('%.0f', q.drawLo))
    end
    return 3, 0
  end
  -- Who was put back once and is gone has had the turn; who still stands in line has not.
  if q_mark(q, number) == 1 and code ~= 1 then return 9, 0 end
  back = back + 1
  redis.call('ZREM', q.reg, user) -- the draw may come to it only now: one place a person
  if deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking then
    redis.call('ZREM', q.wait, user)
    q_set_working(q, user, number, 'A', deadline, turn)
    if q_reserved(q) > 0 then q.reserve = redis.call('HINCRBY', q.meta, 'reserve', -1) end
    return 2, deadline, turn
  end
  if turn then keep_turn(user, number, turn) end
  redis.call('ZADD', q.wait, string.format('%.0f', number), user)
  return 1, 0
end

-- An older state may still have here whose turn is known to be over.
local function forget(user, number)
  if q_working(q, user) == number then
    q_end_working(q, user, number, 'G')
  elseif tonumber(redis.call('ZSCORE', q.wait, user)) == number then
    redis.call('ZREM', q.wait, user)
    if q.returned then redis.call('HDEL', q.place, 'r' .. user) end
    back = back + 1
  end
end

local out = {}
for i = 1, #ARGV[3], 50 do
  local user = string.sub(ARGV[3], i, i + 15)
  local number, deadline, holding, last, may, registered = struct.unpack('>I8I8I8I8BB', string.sub(ARGV[3], i + 16, i + 49))
  local code, until_ms, turn = 9, 0, nil
  if may == 2 then
    forget(user, number)
    if q.remaining == 0 then code = 4 end
  elseif registered == 1 and redis.call('ZSCORE', q.reg, user) then
    code, number = 3, tonumber(redis.call('ZSCORE', q.reg, user))
  elseif registered == 1 and q.drawHi then
    code = 10
  elseif may == 1 and not (q_over(q) and deadline <= q.now) then
    code, until_ms, turn = put_back(user, number, deadline, registered == 1, holding, last)
    -- Suspended, the place says why; it is there all the same.
    if code == 1 and q_shut(q) then code = q_closed(q) and 6 or 4 end
  else
    local here, value, _, found = present(user, number)
    if here == 1 and holding > 0 then keep_turn(user, number, (turn_of(user, number, deadline, holding, last))) end
    if here then code, until_ms, turn = here, here == 2 and value or 0, found end
    if code == 9 and q.remaining == 0 then code = 4 end
  end
  out[#out + 1] = struct.pack('>BBI8I8I8I8I8', code, 0, number, until_ms,
    code == 1 and (redis.call('ZRANK', q.wait, user) or 0) + 1 or 0, turn and turn.holding or 0, turn and turn.last or 0)
end
if back > 0 then q_count(q, 'gone', back) end
q_promote(q)
return { 'ok', q.epoch, q.now, q.last, q.ceiling, table.concat(out) }
