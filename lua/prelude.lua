-- prelude: what every script that touches a waiting room shares. It is put in
-- front of the script's own text; a script of another role uses it the same way.
--
--   KEYS[1] hash  {tag}:meta    settings and counters (the fields stand below)
--   KEYS[2] zset  {tag}:wait    number -> 16-byte user id: who waits, and nobody else
--   KEYS[3] zset  {tag}:work    deadline ms -> user id: who was admitted
--   KEYS[4] hash  {tag}:place   user id -> "<number>,C" for a person admitted and not yet here, or "<number>,A,<turn>"
--                               once the turn runs (what a turn is: q_turn below). 'r' and user id -> "<number>:<turn>":
--                               a turn that waits at the head for a free slot after a loss
--   KEYS[5] zset  {tag}:ended   number -> "<reason><user id>", turns that ended and are
--                               not yet noted in Postgres (N no-show, L lapsed, D done, G given up)
--   KEYS[6] zset  {tag}:reg     registration index -> user id, before the draw
--   KEYS[7] bits  {tag}:back    numbers put back since this epoch began; after a loss also those drawn
--   A script of its own has its keys from KEYS[8] on. Beside them stands, for each
--   person admitted, the string {tag}:t:<hex user id> with a PX: its expiry wakes
--   promotion by a keyspace notification. It is only a bell; the zset is the truth.
--   ARGV[1], ARGV[2]  the highest epoch, and the last number of it, that the caller has
--                     seen ("0", "0" when it has seen none). A store behind that has lost something.
--
-- A script begins with   local q = q_open()   and, unless the loss does not matter to it,
--                        local lost = q_lost(q); if lost then return {'lost', lost} end
-- q then holds each field of Q_FIELDS as a number (nil when absent), q.now in ms, q.replid.
--
-- For scripts of other roles:
--   working_check_in(q, user, number) -> 'working', deadline_ms, number, turn   admitted; a claim became a turn
--                                        'waiting', rank, number  still in line
--                                        'closed', deadline_ms, number, turn     working, but booking has closed: no new holds
--                                        'ended', 0               no such place (number nil: any place of the person)
--   turn_hold(q, user, number, turn, order, deadline_ms)   a turn that takes holds has made one more
--   turn_order(q, user, number, order, deadline_ms)        an order of a turn is unpaid until then, or no longer (0)
--   q_add_remaining(q, delta)             seats not sold, after a sale (negative) or a return; nothing when there is no room yet
--   q_promote(q)                          admit who can be admitted; call it last in a script that frees a place
-- Numbers are unique in a performance over all epochs, so a number names a place.

local Q_FIELDS = {
  'epoch', 'last', 'ceiling', 'served', 'recoverUntil',
  'maxWorking', 'workingTtl', 'claimTtl', 'holdTtl', 'admissionsPerMinute', 'queueFactor', 'paused', 'draining',
  'capacity', 'remaining', 'opensAt', 'closesAt', 'preQueueOpensAt', 'before', 'returned',
  'pollMin', 'pollMax', 'pollStep',
  'drawLo', 'drawHi', 'drawNext', 'cutLo', 'cutHi', 'gone', 'credit', 'creditAt', 'historyAt', 'skew', 'settings',
}
-- One call admits at most this many: about two milliseconds of Redis.
local Q_BATCH = 200
-- A turn makes so many successful holds.
local Q_HOLDS_MAX = 10
-- How long a hold lasts where the settings do not say: the default of both roles.
local Q_HOLD_TTL_MS = 420000

local function q_open()
  assert(#KEYS >= 7, 'queue: want KEYS meta wait work place ended reg back')
  assert(#ARGV >= 2, 'queue: want ARGV epoch, last number')
  local q = { meta = KEYS[1], wait = KEYS[2], work = KEYS[3], place = KEYS[4], ended = KEYS[5], reg = KEYS[6], back = KEYS[7] }
  q.base = string.sub(q.meta, 1, -5)
  local got = redis.call('HMGET', q.meta, 'replid', unpack(Q_FIELDS))
  for i, name in ipairs(Q_FIELDS) do q[name] = tonumber(got[i + 1]) end
  local time = redis.call('TIME')
  q.now = time[1] * 1000 + math.floor(time[2] / 1000) + (q.skew or 0)
  q.replid = got[1]
  q.credit = q.credit or 0
  -- The registrations are frozen by the first call after the opening, so that whoever
  -- comes later stands behind them, drawn already or not.
  if q.drawLo and not q.drawHi and q.opensAt and q.now >= q.opensAt then
    q.drawHi, q.drawNext = q.last, q.drawLo + 1
    redis.call('HSET', q.meta, 'drawHi', q.drawHi, 'drawNext', q.drawNext)
  end
  return q
end

-- Which Redis this is. Another id than the one in the hash means a restart or a failover;
-- a new replica changes it too, so the process's own id has the last word.
local function q_store_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

local function q_process_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function q_lost(q)
  if not q.epoch then return 'missing' end
  local id = q_store_id()
  if id ~= q.replid then
    if q_process_id() ~= redis.call('HGET', q.meta, 'runid') then return 'replaced' end
    redis.call('HSET', q.meta, 'replid', id)
  end
  local epoch, last = tonumber(ARGV[1]), tonumber(ARGV[2])
  if q.epoch < epoch or (q.epoch == epoch and q.last < last) then return 'behind' end
  return nil
end

local function q_hex(id)
  return (string.gsub(id, '.', function(c) return string.format('%02x', string.byte(c)) end))
end

local function q_bell(q, user)
  return q.base .. 't:' .. q_hex(user)
end

local function q_count(q, counter, by)
  redis.call('HINCRBY', q.meta, counter, by)
end

local function q_is(at, now) return at and now >= at end

local function q_recovering(q) return q.recoverUntil and q.now < q.recoverUntil end
local function q_undrawn(q) return q.drawLo and not q.drawHi end

-- The working place of a person: number, state, deadline, the turn's text; nil when there is none.
local function q_working(q, user)
  local place = redis.call('HGET', q.place, user)
  if not place then return nil end
  local number, state, turn = string.match(place, '^(%d+),(%a),?(.*)$')
  return tonumber(number), state, tonumber(redis.call('ZSCORE', q.work, user)), turn
end

-- A turn, as "<holding>,<last>,<epoch>,<holds>[,<order>=<deadline>]...". The first check-in fixes `holding`, until when new
-- holds are accepted, and `last`, when the turn ends whatever its orders do. `holds` counts the successful ones and is nil
-- until an epoch knows how many there were before it. `orders`: the deadlines of those that are unpaid.
local function q_turn(q, text, deadline)
  local holding, last, epoch, holds, orders = string.match(text or '', '^(%d+),(%d+),(%d+),(%d+)(.*)$')
  local turn = { holding = tonumber(holding) or deadline, last = tonumber(last) or deadline, orders = {} }
  if holds and tonumber(epoch) == q.epoch then turn.holds = tonumber(holds) end
  for order, at in string.gmatch(orders or '', ',(%x+)=(%d+)') do turn.orders[order] = tonumber(at) end
  return turn
end

local function q_turn_text(q, turn)
  local epoch = turn.holds and q.epoch or 0
  local text = string.format('%.0f,%.0f,%.0f,%.0f', turn.holding, turn.last, epoch, turn.holds or 0)
  for order, at in pairs(turn.orders) do
    if at > q.now then text = text .. string.format(',%s=%.0f', order, at) end
  end
  return text
end

-- When a turn ends as things stand: unpaid orders keep it, within its bounds.
local function q_turn_end(turn)
  local at = turn.holding
  for _, deadline in pairs(turn.orders) do at = math.max(at, deadline) end
  return math.min(at, turn.last)
end

local function q_set_working(q, user, number, state, deadline, turn)
  redis.call('ZADD', q.work, deadline, user)
  redis.call('HSET', q.place, user,
    string.format('%.0f,%s', number, state) .. (turn and ',' .. q_turn_text(q, turn) or ''))
  redis.call('SET', q_bell(q, user), '', 'PX', math.max(1, deadline - q.now))
end

local Q_COUNTER = { N = 'noShows', L = 'lapsed', D = 'completed', G = 'left' }

-- A turn ends, once: the slot is free, and the note waits for Postgres.
local function q_end_working(q, user, number, reason)
  redis.call('ZREM', q.work, user)
  redis.call('HDEL', q.place, user)
  redis.call('DEL', q_bell(q, user))
  redis.call('ZADD', q.ended, number, reason .. user)
  q_count(q, Q_COUNTER[reason], 1)
end

local function q_expire(q)
  local due = redis.call('ZRANGEBYSCORE', q.work, '-inf', q.now, 'LIMIT', 0, Q_BATCH)
  for _, user in ipairs(due) do
    local number, state = q_working(q, user)
    q_end_working(q, user, number or 0, state == 'C' and 'N' or 'L')
  end
  return #due
end

-- What was served at the start of each of the last eight ten-second spans: the distance a
-- minute ago, and so the longest interval anyone whose turn comes now can have been told.
local function q_history(q)
  local span = math.floor(q.now / 10000)
  if q.historyAt and q.historyAt >= span then return end
  local first = math.max((q.historyAt or 0) + 1, span - 7)
  for at = first, span do redis.call('HSET', q.meta, 'served' .. (at % 8), string.format('%.0f', q.served)) end
  redis.call('HSET', q.meta, 'historyAt', span)
  q.historyAt = span
end

local function q_claim_window(q, number, served_then)
  local told = math.min(q.pollMax, q.pollMin + math.max(0, number - served_then) * q.pollStep)
  -- Who was drawn was told to ask within a spread after the opening (the instances reckon it the same way).
  if q.drawHi and number <= q.drawHi and q.opensAt and q.now < q.opensAt + 120000 then
    told = math.max(told, math.min(60000, math.max(2000, (q.drawHi - q.drawLo) / 5)))
  end
  return math.max(q.claimTtl, math.floor(told * 1.5))
end

-- SOLD_OUT and CLOSED end every waiting place at once. The freeing of the memory is Redis's
-- background work; the range stays, so that an instance answers for it without asking.
local function q_cut(q)
  if not (q.remaining == 0 or q_is(q.closesAt, q.now)) then return end
  if redis.call('EXISTS', q.wait) == 0 then return end
  redis.call('UNLINK', q.wait)
  redis.call('HSET', q.meta, 'cutLo', string.format('%.0f', q.served), 'cutHi', string.format('%.0f', q.last))
  q.cutLo, q.cutHi = q.served, q.last
  q_count(q, 'gone', 1)
end

local function q_may_admit(q)
  return q.paused ~= 1 and q.remaining ~= 0 and not q_recovering(q)
    and (not q.opensAt or q.now >= q.opensAt) and not q_is(q.closesAt, q.now) and not q_undrawn(q)
end

-- How many the inflow limit lets in now. At most one second's worth is kept.
local function q_credit(q, room)
  local rate = q.admissionsPerMinute
  if not rate then return room end
  local earned = math.max(0, q.now - (q.creditAt or q.now)) * rate / 60000
  q.credit = math.min(q.credit + earned, rate > 0 and math.max(1, rate / 60) or 0)
  q.creditAt = q.now
  return math.min(room, math.floor(q.credit))
end

-- Everyone at or below `served` has had the turn come up. It never goes back, and stands still
-- while people are still being put back or drawn.
local function q_serve(q)
  if q_recovering(q) or q_undrawn(q) then return end
  local head = redis.call('ZRANGE', q.wait, 0, 0, 'WITHSCORES')
  local served = head[2] and tonumber(head[2]) - 1 or q.last
  if q.drawNext and q.drawNext <= q.drawHi then served = math.min(served, q.drawNext - 1) end
  if served > q.served then
    q.served = served
    redis.call('HSET', q.meta, 'served', string.format('%.0f', served))
  end
end

-- The turn that a person had before a loss and goes on with now; nil when there is none for this number.
local function q_take_returned(q, user, number)
  local text = redis.call('HGET', q.place, 'r' .. user)
  if not text then return nil end
  redis.call('HDEL', q.place, 'r' .. user)
  local of, turn = string.match(text, '^(%d+):(.*)$')
  return tonumber(of) == number and q_turn(q, turn, q.now) or nil
end

-- Frees what is due, then admits the lowest numbers while working < maxWorking. Atomic and
-- idempotent: any instance may call it at any time. Returns how many came in, and whether there is more to do.
local function q_promote(q)
  local freed = q_expire(q)
  q_history(q)
  q_cut(q)
  local admitted, wanted = 0, 0
  if q_may_admit(q) then
    local room = q.maxWorking - redis.call('ZCARD', q.work)
    if room > 0 then wanted = math.min(Q_BATCH, q_credit(q, room)) end
  end
  if wanted > 0 then
    local upto = (q.drawNext and q.drawNext <= q.drawHi) and q.drawNext - 1 or '+inf'
    local next_up = redis.call('ZRANGEBYSCORE', q.wait, '-inf', upto, 'WITHSCORES', 'LIMIT', 0, wanted)
    admitted = #next_up / 2
    if admitted > 0 then
      local then_served = tonumber(redis.call('HGET', q.meta, 'served' .. ((q.historyAt + 1) % 8))) or 0
      redis.call('ZREMRANGEBYRANK', q.wait, 0, admitted - 1)
      for i = 1, #next_up, 2 do
        local number = tonumber(next_up[i + 1])
        local turn = q.returned and q_take_returned(q, next_up[i], number)
        if turn then
          q_set_working(q, next_up[i], number, 'A', q_turn_end(turn), turn)
        else
          q_set_working(q, next_up[i], number, 'C', q.now + q_claim_window(q, number, then_served))
        end
      end
      q_count(q, 'admitted', admitted)
    end
  end
  if q.admissionsPerMinute and q.creditAt then
    redis.call('HSET', q.meta, 'credit', tostring(q.credit - admitted), 'creditAt', string.format('%.0f', q.creditAt))
    q.credit = q.credit - admitted
  end
  q_serve(q)
  return admitted, (freed == Q_BATCH or admitted == Q_BATCH)
end

local function working_check_in(q, user, number)
  local held, state, deadline, text = q_working(q, user)
  if held and (number == nil or held == number) then
    if deadline <= q.now or (state == 'C' and q_is(q.closesAt, q.now)) then
      q_end_working(q, user, held, state == 'C' and 'N' or 'L')
      q_promote(q)
      return 'ended', 0
    end
    local turn = q_turn(q, text, deadline)
    if state == 'C' then
      deadline = q.now + q.workingTtl
      -- A number of an earlier epoch may have had a turn, and holds, that this Redis has lost.
      turn = { holding = deadline, last = deadline + 2 * (q.holdTtl or Q_HOLD_TTL_MS),
        holds = held > (q.before or 0) and 0 or nil, orders = {} }
      q_set_working(q, user, held, 'A', deadline, turn)
      q_count(q, 'claimed', 1)
    end
    return q_is(q.closesAt, q.now) and 'closed' or 'working', deadline, held, turn
  end
  local waits = tonumber(redis.call('ZSCORE', q.wait, user))
  if waits and (number == nil or waits == number) then
    return 'waiting', redis.call('ZRANK', q.wait, user) + 1, waits
  end
  return 'ended', 0
end

local function turn_hold(q, user, number, turn, order, deadline)
  turn.holds = turn.holds + 1
  turn.orders[q_hex(order)] = deadline
  q_set_working(q, user, number, 'A', q_turn_end(turn), turn)
end

-- `number` is the place that the order was made from; 0 where that is not known, then only the turn that names the order is
-- meant. Returns true when the turn ended here: promote then.
local function turn_order(q, user, number, order, deadline)
  local place, state, ends, text = q_working(q, user)
  if state ~= 'A' then return false end
  local turn, name = q_turn(q, text, ends), q_hex(order)
  if place ~= number and not turn.orders[name] then return false end
  turn.orders[name] = deadline > q.now and deadline or nil
  if q_turn_end(turn) > q.now then
    q_set_working(q, user, place, 'A', q_turn_end(turn), turn)
    return false
  end
  q_end_working(q, user, place, 'L')
  return true
end

local function q_add_remaining(q, delta)
  if not q.epoch then return end
  q.remaining = math.max(0, (q.remaining or 0) + delta)
  redis.call('HSET', q.meta, 'remaining', q.remaining)
end

-- Seats not sold, by the states of every schedule (KEYS[8..]); nil when one of them is missing, or none is named.
local function q_unsold()
  if #KEYS < 8 then return nil end
  local left = 0
  for at = 8, #KEYS do
    local states = redis.call('GET', KEYS[at])
    if not states then return nil end
    local _, sold = string.gsub(states, '2', '2')
    left = left + #states - sold
  end
  return left
end

-- Everything a snapshot tells, as integers in this order; -1 stands for none.
local function q_view(q)
  local counters = redis.call('HMGET', q.meta, 'admitted', 'claimed', 'noShows', 'lapsed', 'completed', 'left', 'gone')
  for i = 1, #counters do counters[i] = tonumber(counters[i]) or 0 end
  local view = {
    q.epoch, q.now, q.served, q.last, q.ceiling,
    redis.call('ZCARD', q.wait), redis.call('ZCARD', q.work), redis.call('ZCARD', q.reg), redis.call('ZCARD', q.ended),
    q.maxWorking, q.workingTtl, q.claimTtl, q.admissionsPerMinute or -1, q.paused or 0, q.draining or 0,
    q.capacity or -1, q.remaining or -1, q.opensAt or -1, q.closesAt or -1, q.preQueueOpensAt or -1, q.recoverUntil or 0,
    q.pollMin, q.pollMax, q.pollStep,
    q.drawLo or -1, q.drawHi or -1, q.drawNext or -1, q.cutLo or -1, q.cutHi or -1, q.settings or 0,
  }
  for i = 1, #counters do view[#view + 1] = counters[i] end
  return view
end
