#!lua
-- prelude (the line above makes Redis refuse a script whole, never half, when it is out of memory, a
-- replica, or cannot save): what every script that touches a waiting room shares. It is put in
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
--   KEYS[7] bits  {tag}:back:<epoch>:<n>   numbers put back since this epoch began, 65,536 to a key; after a
--                               loss also those drawn
--   A script of its own has its keys from KEYS[8] on. Beside them stands, for each
--   person admitted, the string {tag}:t:<hex user id> with a PX: its expiry wakes
--   promotion by a keyspace notification. It is only a bell; the zset is the truth.
--   ARGV[1], ARGV[2]  the highest epoch, and the last number of it, that the caller has
--                     seen ("0", "0" when it has seen none). A store behind that has lost something.
--
-- A script begins with   local q = q_open()   and, unless the loss does not matter to it,
--                        local lost = q_lost(q); if lost then return {'lost', lost} end
-- q then holds each field of Q_FIELDS as a number (nil when absent), q.replid, and two times in ms: q.wall is the
-- clock of Redis, for opening and closing; q.now never goes back, for everything else (see q_clock).
--
-- For scripts of other roles:
--   working_check_in(q, user, number) -> 'working', deadline_ms, number, turn   admitted; a claim became a turn
--                                        'waiting', rank, number  still in line
--                                        'closed', deadline_ms, number, turn     working, but booking has closed: no new holds
--                                        'shut', deadline_ms, number      admitted, but booking closed before the first check-in
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
  'clock', 'clockAt', 'due', 'given', 'giveBy', 'giveTo', 'seq', 'recoverFrom', 'recoverThen', 'suspendedAt',
  'reserve', 'reserveUntil', 'orders', 'keptFrom',
}
-- One call admits at most this many: about two milliseconds of Redis.
local Q_BATCH = 200
-- A turn makes so many successful holds.
local Q_HOLDS_MAX = 10
-- How long a hold lasts where the settings do not say: the default of both roles.
local Q_HOLD_TTL_MS = 420000

-- The queue was served as long as some script ran in time. `due` is when the next one was promised, and this much more.
local Q_SLACK_MS = 1000
-- One step gives time back to so many people, and one call takes so many steps: some milliseconds of Redis.
local Q_GIVE, Q_GIVE_STEPS = 250, 4
-- Waiting places are suspended for so long by SOLD_OUT or CLOSED; later they have ended.
local Q_SUSPENDED_MS = 600000
-- People who poll as told are back after their interval, and this much.
local Q_RETURN_SLACK_MS = 1500
-- A bitmap of places put back holds so many numbers, and ends by itself: later, Postgres knows the turns that ended.
local Q_BITS, Q_BITS_KEPT_MS = 65536, 604800000

local function q_text(number) return string.format('%.0f', number) end

local function q_hex(id)
  return (string.gsub(id, '.', function(c) return string.format('%02x', string.byte(c)) end))
end

-- The script's clock. While it agrees with Redis's clock, it is that. After that one was set back it goes on from where it was,
-- a tenth slower until both agree again. It never goes back, and never stands still.
local function q_clock(q)
  local passed = math.max(0, q.wall - (q.clockAt or q.wall))
  local now = (q.clock or q.wall) + passed
  if now > q.wall then now = now - math.floor(passed / 10) end
  q.now = math.max(now, q.wall)
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

-- One step of giving lost time back, from the latest deadline down. The deadlines at and below `giveTo` are still to come.
local function q_give_step(q)
  local due = redis.call('ZREVRANGEBYSCORE', q.work, q_text(q.giveTo), '-inf', 'WITHSCORES', 'LIMIT', 0, Q_GIVE)
  if #due == 2 * Q_GIVE then
    -- All those of the last deadline belong to this step, and no other of it.
    local edge, more = due[#due], {}
    for i = 1, #due, 2 do
      if due[i + 1] ~= edge then more[#more + 1], more[#more + 2] = due[i], due[i + 1] end
    end
    for _, user in ipairs(redis.call('ZRANGEBYSCORE', q.work, edge, edge)) do
      more[#more + 1], more[#more + 2] = user, edge
    end
    due, q.giveTo = more, tonumber(edge) - 1
  else
    q.giveTo = nil
  end
  local users, moved, places = {}, {}, {}
  for i = 1, #due, 2 do users[#users + 1] = due[i] end
  local found = #users > 0 and redis.call('HMGET', q.place, unpack(users)) or {}
  for i, user in ipairs(users) do
    local deadline = tonumber(due[2 * i]) + q.giveBy
    local head, text = string.match(found[i] or '', '^(%d+,A),(.*)$')
    if head then
      local turn = q_turn(q, text, tonumber(due[2 * i]))
      turn.holding, turn.last = turn.holding + q.giveBy, turn.last + q.giveBy
      deadline = math.max(tonumber(due[2 * i]), q_turn_end(turn))
      places[#places + 1], places[#places + 2] = user, head .. ',' .. q_turn_text(q, turn)
    end
    moved[#moved + 1], moved[#moved + 2] = q_text(deadline), user
  end
  if #moved > 0 then redis.call('ZADD', q.work, unpack(moved)) end
  if #places > 0 then redis.call('HSET', q.place, unpack(places)) end
  if q.giveTo then
    redis.call('HSET', q.meta, 'giveTo', q_text(q.giveTo))
  else
    q.giveBy = nil
    redis.call('HDEL', q.meta, 'giveBy', 'giveTo')
  end
end

-- Nobody could check in since the script before: no deadline comes nearer for that. It is so after an outage, a stall, a restart,
-- while Redis refused writes, and when its clock was set forward.
local function q_give_back(q, lost)
  -- What an earlier outage still owes is given first, however much it is: two at once are rare.
  while q.giveBy do q_give_step(q) end
  local fields = { 'given', q_text((q.given or 0) + lost) }
  q.given = (q.given or 0) + lost
  for _, name in ipairs({ 'recoverUntil', 'recoverFrom', 'suspendedAt', 'reserveUntil' }) do
    if (q[name] or 0) > 0 then
      q[name] = q[name] + lost
      fields[#fields + 1], fields[#fields + 2] = name, q_text(q[name])
    end
  end
  local latest = redis.call('ZREVRANGE', q.work, 0, 0, 'WITHSCORES')[2]
  if latest then
    q.giveBy, q.giveTo = lost, tonumber(latest)
    fields[#fields + 1], fields[#fields + 2] = 'giveBy', q_text(lost)
    fields[#fields + 1], fields[#fields + 2] = 'giveTo', latest
  end
  redis.call('HSET', q.meta, unpack(fields))
end

local function q_heartbeat(q)
  local lost = q.due and q.now > q.due and q.now - (q.clock or q.now) or 0
  if lost > 0 then q_give_back(q, lost) end
  for _ = 1, Q_GIVE_STEPS do
    if q.giveBy then q_give_step(q) end
  end
  local due = math.max(q.due or 0, q.now + Q_SLACK_MS)
  if q.now ~= q.clock or q.wall ~= q.clockAt or due ~= q.due then
    q.clock, q.clockAt, q.due = q.now, q.wall, due
    redis.call('HSET', q.meta, 'clock', q_text(q.now), 'clockAt', q_text(q.wall), 'due', q_text(due))
  end
end

local function q_open()
  assert(#KEYS >= 7, 'queue: want KEYS meta wait work place ended reg back')
  assert(#ARGV >= 2, 'queue: want ARGV epoch, last number')
  local q = { meta = KEYS[1], wait = KEYS[2], work = KEYS[3], place = KEYS[4], ended = KEYS[5], reg = KEYS[6], back = KEYS[7] }
  q.base = string.sub(q.meta, 1, -5)
  local got = redis.call('HMGET', q.meta, 'replid', 'skips', 'kept', unpack(Q_FIELDS))
  for i, name in ipairs(Q_FIELDS) do q[name] = tonumber(got[i + 3]) end
  local time = redis.call('TIME')
  q.wall = time[1] * 1000 + math.floor(time[2] / 1000) + (q.skew or 0)
  q.replid, q.skips, q.kept = got[1], got[2] or '', got[3] or ''
  q.credit = q.credit or 0
  q_clock(q)
  if q.epoch then q_heartbeat(q) end
  -- The registrations are frozen by the first call after the opening, so that whoever
  -- comes later stands behind them, drawn already or not.
  if q.drawLo and not q.drawHi and q.opensAt and q.wall >= q.opensAt then
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

-- Whether the caller has given up: it waits no longer than until `by` (ms, by Redis's clock; 0: not known).
local function q_late(q, by)
  by = tonumber(by) or 0
  return by > 0 and q.wall > by
end

-- Whether a token of `epoch` counts as it is: its epoch is this one, or was taken over, and the number is no later than
-- what was taken over of it.
local function q_keeps(q, epoch, number)
  if epoch == q.epoch then return true end
  if epoch > q.epoch or not q.keptFrom or epoch < q.keptFrom then return false end
  for upto, last in string.gmatch(q.kept, '(%d+):(%d+)') do
    if epoch <= tonumber(upto) and number > tonumber(last) then return false end
  end
  return true
end

-- Marks a number as put back in this epoch; 1 when it was marked before.
local function q_mark(q, number)
  local key = string.format('%s:%.0f:%.0f', q.back, q.epoch, math.floor(number / Q_BITS))
  local before = redis.call('SETBIT', key, number % Q_BITS, 1)
  if before == 0 then redis.call('PEXPIRE', key, Q_BITS_KEPT_MS) end
  return before
end

local function q_bell(q, user)
  return q.base .. 't:' .. q_hex(user)
end

local function q_count(q, counter, by)
  redis.call('HINCRBY', q.meta, counter, by)
end

local function q_is(at, now) return at and now >= at end

local function q_closed(q) return q_is(q.closesAt, q.wall) end
local function q_shut(q) return q.remaining == 0 or q_closed(q) end

local function q_recovering(q) return q.recoverUntil and q.now < q.recoverUntil end
local function q_undrawn(q) return q.drawLo and not q.drawHi end

-- The working place of a person: number, state, deadline, the turn's text; nil when there is none.
local function q_working(q, user)
  local place = redis.call('HGET', q.place, user)
  if not place then return nil end
  local number, state, turn = string.match(place, '^(%d+),(%a),?(.*)$')
  local deadline = tonumber(redis.call('ZSCORE', q.work, user)) or 0
  -- Lost time that is still to be given back counts.
  if q.giveBy and deadline <= q.giveTo then deadline = deadline + q.giveBy end
  return tonumber(number), state, deadline, turn
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
  if q.giveBy then return Q_BATCH end -- first everybody has the lost time back
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
  local span = math.floor((q.now - (q.given or 0)) / 10000)
  if q.historyAt and q.historyAt >= span then return end
  local first = math.max((q.historyAt or 0) + 1, span - 7)
  for at = first, span do redis.call('HSET', q.meta, 'served' .. (at % 8), string.format('%.0f', q.served)) end
  redis.call('HSET', q.meta, 'historyAt', span)
  q.historyAt = span
end

-- How many numbers lie between two that were issued: what an epoch skipped of a reserved block is no distance.
local function q_between(q, from, number)
  local count = math.max(0, number - from)
  for low, high in string.gmatch(q.skips, '(%d+)-(%d+)') do
    count = count - math.max(0, math.min(number, tonumber(high)) - math.max(from, tonumber(low)))
  end
  return math.max(0, count)
end

-- The longest interval that the person with `number` can have been told since `served_then` was the number served.
local function q_interval(q, number, served_then)
  local told = math.min(q.pollMax, q.pollMin + q_between(q, served_then, number) * q.pollStep)
  -- People who were drawn are told to ask within a spread after the opening (the instances reckon it the same way).
  if q.drawHi and number <= q.drawHi and q.opensAt and q.wall < q.opensAt + 120000 then
    told = math.max(told, math.min(60000, math.max(2000, (q.drawHi - q.drawLo) / 5)))
  end
  return told
end

local function q_claim_window(q, number, served_then)
  return math.max(q.claimTtl, math.floor(q_interval(q, number, served_then) * 1.5))
end

-- SOLD_OUT and CLOSED suspend every waiting place at once; it goes on when the seats come back or the closing is taken
-- back. After ten minutes it has ended: the freeing of the memory is Redis's background work, and the range stays, so that an
-- instance answers for it without asking.
local function q_suspend(q)
  if not q_shut(q) then
    if q.suspendedAt then
      redis.call('HDEL', q.meta, 'suspendedAt')
      q.suspendedAt = nil
    end
    return
  end
  if not q.suspendedAt then
    q.suspendedAt = q.now
    redis.call('HSET', q.meta, 'suspendedAt', q_text(q.now))
  end
  if q.now < q.suspendedAt + Q_SUSPENDED_MS or redis.call('EXISTS', q.wait) == 0 then return end
  redis.call('UNLINK', q.wait)
  redis.call('HSET', q.meta, 'cutLo', q_text(q.served), 'cutHi', q_text(q.last))
  q.cutLo, q.cutHi = q.served, q.last
  q_count(q, 'gone', 1)
end

-- Whether waiting places have ended for good.
local function q_over(q)
  return q_shut(q) and q.suspendedAt and q.now >= q.suspendedAt + Q_SUSPENDED_MS
end

local function q_may_admit(q)
  return q.paused ~= 1 and not q_shut(q) and not q_recovering(q)
    and (not q.opensAt or q.wall >= q.opensAt) and not q_undrawn(q)
    and not q.giveBy and q.orders ~= 1
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

-- Slots kept for people that this state has never heard of, though somebody has: they may have been admitted.
local function q_reserved(q)
  return q.reserve and q.reserve > 0 and q.now < (q.reserveUntil or 0) and q.reserve or 0
end

-- What had been served a minute ago.
local function q_served_then(q)
  return tonumber(redis.call('HGET', q.meta, 'served' .. (((q.historyAt or 0) + 1) % 8))) or 0
end

-- After a loss a number is admitted only when everybody before it who polls as told has come back. How many of these
-- (number at every second place, ascending) are.
local function q_returned(q, next_up)
  local count = #next_up / 2
  local passed = q.now - (q.recoverFrom or 0)
  if not q.recoverFrom or passed >= q.pollMax + Q_RETURN_SLACK_MS then return count end
  for i = 1, count do
    local number = tonumber(next_up[2 * i])
    if passed < q_interval(q, number, q.recoverThen or 0) + Q_RETURN_SLACK_MS then return i - 1 end
  end
  return count
end

-- Frees what is due, then admits the lowest numbers while working < maxWorking. Atomic and
-- idempotent: any instance may call it at any time. Returns how many came in, and whether there is more to do.
local function q_promote(q)
  local freed = q_expire(q)
  q_history(q)
  q_suspend(q)
  local admitted, wanted = 0, 0
  if q_may_admit(q) then
    local room = q.maxWorking - redis.call('ZCARD', q.work) - q_reserved(q)
    if room > 0 then wanted = math.min(Q_BATCH, q_credit(q, room)) end
  end
  if wanted > 0 then
    local upto = (q.drawNext and q.drawNext <= q.drawHi) and q.drawNext - 1 or '+inf'
    local next_up = redis.call('ZRANGEBYSCORE', q.wait, '-inf', upto, 'WITHSCORES', 'LIMIT', 0, wanted)
    admitted = q_returned(q, next_up)
    if admitted > 0 then
      local then_served = q_served_then(q)
      redis.call('ZREMRANGEBYRANK', q.wait, 0, admitted - 1)
      for i = 1, 2 * admitted, 2 do
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
  return admitted, (freed >= Q_BATCH or admitted == Q_BATCH)
end

local function working_check_in(q, user, number)
  local held, state, deadline, text = q_working(q, user)
  if held and (number == nil or held == number) then
    if deadline <= q.now then
      q_end_working(q, user, held, state == 'C' and 'N' or 'L')
      q_promote(q)
      return 'ended', 0
    end
    -- A claim begins no turn after the closing; it is there when the closing is taken back.
    if state == 'C' and q_closed(q) then return 'shut', deadline, held end
    local turn = q_turn(q, text, deadline)
    if state == 'C' then
      deadline = q.now + q.workingTtl
      -- A number of an earlier epoch may have had a turn, and holds, that this Redis has lost.
      turn = { holding = deadline, last = deadline + 2 * (q.holdTtl or Q_HOLD_TTL_MS),
        holds = held > (q.before or 0) and 0 or nil, orders = {} }
      q_set_working(q, user, held, 'A', deadline, turn)
      q_count(q, 'claimed', 1)
    end
    return q_closed(q) and 'closed' or 'working', deadline, held, turn
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
    q.seq or 0, q.wall, q_served_then(q), q.suspendedAt or -1, q.orders or 0, q.keptFrom or -1, q.given or 0,
    q.recoverFrom or -1,
  }
  for i = 1, #counters do view[#view + 1] = counters[i] end
  return view
end
