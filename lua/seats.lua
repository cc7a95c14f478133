-- seats: what the scripts about seats share. Two strings describe a schedule:
-- one byte a seat ('0' free, '1' held, '2' sold), and beside it 16 bytes a seat
-- naming the order that has it (zeros: nobody). Whoever frees or sells a seat
-- must be named there, so that a late step cannot touch a seat that has moved on.

local FREE, HELD, SOLD = 48, 49, 50
local NOBODY = string.rep('\0', 16)
-- An order that is over keeps its version this long, against steps still under way.
local FENCE_MS = 3600000

-- "cjson"-free and allocation-light: one GETRANGE a seat beats reading the
-- whole owner string (32 KB for 2,000 seats) for the four that matter.
local function owner_of(owners, index)
  return redis.call('GETRANGE', owners, index * 16, index * 16 + 15)
end

local function byte_of(seats, index)
  return string.byte(redis.call('GETRANGE', seats, index, index)) or 0
end

local function set_seat(seats, owners, index, byte, order)
  redis.call('SETRANGE', seats, index, string.char(byte))
  redis.call('SETRANGE', owners, index * 16, order)
end

-- A person's live orders: records of 17 bytes, order id and number of seats.
-- A set of orders, not a counter: adding or removing one twice changes nothing.
local function seats_of_person(records, except)
  local sum = 0
  for at = 1, #records, 17 do
    if string.sub(records, at, at + 15) ~= except then
      sum = sum + string.byte(records, at + 16)
    end
  end
  return sum
end

local function note_person(limit, user, order, count)
  local records = redis.call('HGET', limit, user) or ''
  local kept = {}
  for at = 1, #records, 17 do
    if string.sub(records, at, at + 15) ~= order then
      kept[#kept + 1] = string.sub(records, at, at + 16)
    end
  end
  if count > 0 then
    kept[#kept + 1] = order .. string.char(count)
  end
  if #kept == 0 then
    redis.call('HDEL', limit, user)
  else
    redis.call('HSET', limit, user, table.concat(kept))
  end
end
