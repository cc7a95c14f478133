-- queue_restore: places of earlier epochs come back by their tokens, each once an epoch.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, entries: 34 bytes each, user id (16), number (8), deadline (8; 0: it
--          waited), may return (0: too late, unless it stands here; 1: yes; 2: Postgres knows that its turn has ended),
--          registered (1: an index before the draw)
-- Returns {'ok', epoch, now, last, ceiling, outcomes} as queue_enter does, with code 9: the turn has ended, and 10: the
-- draw is under way, so that its number is told when the seed is; or {'lost', why}.
local q = q_open()
assert(#ARGV == 3 and #ARGV[3] % 34 == 0, 'queue_restore: want ARGV epoch, last, entries')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
q_cut(q)

local back = 0
-- What stands in Redis under this person: the very place, another one, or nothing.
local function present(user, number)
  local held, _, deadline = q_working(q, user)
  if held and held ~= number and deadline > q.now then return 9 end -- and this is no check-in of it
  local tag, value, waits = working_check_in(q, user, nil)
  if tag == 'working' then return 2, value end
  if tag == 'closed' then return 6 end
  if tag == 'waiting' then return waits == number and 1 or nil, value, waits end
  return nil
end

local function put_back(user, number, deadline, registered)
  local code, value, other = present(user, number)
  -- An older state may have in line who was admitted since: the proof of that counts.
  local admitted = code == 1 and deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking
  if code and not admitted then return code, code == 2 and value or 0 end
  -- Who entered anew meanwhile keeps the better of the two numbers.
  if other and other < number then return 9, 0 end
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
  if redis.call('SETBIT', q.back, number, 1) == 1 and code ~= 1 then return 9, 0 end
  back = back + 1
  redis.call('ZREM', q.reg, user) -- the draw may come to it only now: one place a person
  if deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking then
    redis.call('ZREM', q.wait, user)
    q_set_working(q, user, number, 'A', deadline)
    return 2, deadline
  end
  redis.call('ZADD', q.wait, string.format('%.0f', number), user)
  return 1, 0
end

-- An older state may still have here whose turn is known to be over.
local function forget(user, number)
  if q_working(q, user) == number then
    q_end_working(q, user, number, 'G')
  elseif tonumber(redis.call('ZSCORE', q.wait, user)) == number then
    redis.call('ZREM', q.wait, user)
    back = back + 1
  end
end

local out = {}
for i = 1, #ARGV[3], 34 do
  local user = string.sub(ARGV[3], i, i + 15)
  local number, deadline, may, registered = struct.unpack('>I8I8BB', string.sub(ARGV[3], i + 16, i + 33))
  local code, until_ms = 9, 0
  if may == 2 then
    forget(user, number)
    if q.remaining == 0 then code = 4 end
  elseif registered == 1 and redis.call('ZSCORE', q.reg, user) then
    code, number = 3, tonumber(redis.call('ZSCORE', q.reg, user))
  elseif registered == 1 and q.drawHi then
    code = 10
  elseif may == 1 and not (q_is(q.closesAt, q.now) or (q.remaining == 0 and deadline <= q.now)) then
    code, until_ms = put_back(user, number, deadline, registered == 1)
  else
    local here, value = present(user, number)
    if here then code, until_ms = here, here == 2 and value or 0 end
    if code == 9 and q.remaining == 0 then code = 4 end
  end
  out[#out + 1] = struct.pack('>BBI8I8I8', code, 0, number, until_ms, code == 1 and (redis.call('ZRANK', q.wait, user) or 0) + 1 or 0)
end
if back > 0 then q_count(q, 'gone', back) end
q_promote(q)
return { 'ok', q.epoch, q.now, q.last, q.ceiling, table.concat(out) }
