-- queue_enter: a batch of people enters. Who has a place keeps it; new people get numbers
-- in the order of the batch, behind everybody, and who can be admitted is admitted here.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, user ids (16 bytes each, joined), until when the callers wait (ms by Redis's clock; 0: not known)
-- Returns {'ok', epoch, now, last, ceiling, outcomes, draw from, draw to} {'late'} (the callers have given up: nobody
-- has entered), or {'lost', why}. Registrations have indexes
-- above the first and up to the second, once they are frozen; each is -1 while there is none, and both are when the seed is
-- told. Postgres must know them before anybody is told an outcome. An outcome is 42 bytes a
-- person: code, new (0|1), number, deadline, position, and the bounds of a turn: until when it takes holds, and when it ends
-- at the latest (8 bytes each, big-endian).
--   codes  1 waiting, 2 working, 3 registered, 4 sold out, 5 too many wait, 6 not open, 7 draining,
--          8 no number left below the ceiling
local q = q_open()
assert(#ARGV == 4 and #ARGV[3] % 16 == 0, 'queue_enter: want ARGV epoch, last, users, by')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
if q_late(q, ARGV[4]) then return { 'late' } end

local users, new, code, number = {}, {}, {}, {}
for i = 1, #ARGV[3], 16 do users[#users + 1] = string.sub(ARGV[3], i, i + 15) end

q_expire(q) -- a turn that is over is no place to come back to
q_suspend(q)
local waits = redis.call('ZMSCORE', q.wait, unpack(users))
local works = redis.call('HMGET', q.place, unpack(users))
local waiting = redis.call('ZCARD', q.wait)
local early = q.opensAt and q.wall < q.opensAt
-- Registrations that are frozen stay so, also where the opening moves back over them: newcomers stand behind them.
local pre_queue = early and q.preQueueOpensAt and q.wall >= q.preQueueOpensAt and not q.drawHi
local behind_draw = early and q.drawHi
local registered = (q.drawLo and redis.call('EXISTS', q.reg) == 1) and redis.call('ZMSCORE', q.reg, unpack(users)) or {}

local function refusal()
  if q_closed(q) or (early and not pre_queue and not behind_draw) then return 6 end
  if q.remaining == 0 then return 4 end
  if q.draining == 1 then return 7 end
  if not pre_queue and q.queueFactor > 0 and waiting >= q.queueFactor * q.remaining then return 5 end
  if q.last >= q.ceiling then return 8 end
  return nil
end

local seen, added, last = {}, {}, q.last
for i, user in ipairs(users) do
  new[i] = 0
  if seen[user] then
    code[i], number[i] = code[seen[user]], number[seen[user]]
  elseif waits[i] then
    -- Suspended, the place says why; it is there all the same.
    code[i], number[i] = q_closed(q) and 6 or q.remaining == 0 and 4 or 1, tonumber(waits[i])
  elseif works[i] then
    code[i], number[i] = 2, 0
  elseif registered[i] then
    code[i], number[i] = 3, tonumber(registered[i])
  else
    code[i] = refusal()
    if not code[i] then
      q.last = q.last + 1
      code[i], new[i], number[i] = pre_queue and 3 or 1, 1, q.last
      waiting = waiting + 1
      added[#added + 1] = string.format('%.0f', q.last)
      added[#added + 1] = user
    end
  end
  seen[user] = seen[user] or i
end

if #added > 0 then
  if pre_queue and not q.drawLo then
    q.drawLo = last
    redis.call('HSET', q.meta, 'drawLo', string.format('%.0f', last))
  end
  redis.call('ZADD', pre_queue and q.reg or q.wait, unpack(added))
  redis.call('HSET', q.meta, 'last', string.format('%.0f', q.last))
end
local admitted = q_promote(q)

-- An answer WORKING is a check-in.
local out = {}
for i, user in ipairs(users) do
  local deadline, position, turn = 0, 0, nil
  if code[i] == 2 or (code[i] == 1 and admitted > 0) then
    local tag, at, held, found = working_check_in(q, user, nil)
    if tag == 'working' then
      code[i], number[i], deadline, turn = 2, held, at, found
    elseif tag == 'waiting' then
      code[i], number[i] = 1, held
    else
      code[i] = (tag == 'closed' or tag == 'shut') and 6 or 9
    end
  end
  if code[i] == 1 then position = redis.call('ZRANK', q.wait, user) + 1 end
  out[i] = struct.pack('>BBI8I8I8I8I8', code[i], new[i], number[i] or 0, deadline, position,
    turn and turn.holding or 0, turn and turn.last or 0)
end
local untold = q.drawLo and redis.call('HEXISTS', q.meta, 'seed') == 0
return { 'ok', q.epoch, q.now, q.last, q.ceiling, table.concat(out), untold and q.drawLo or -1, untold and q.drawHi or -1 }
