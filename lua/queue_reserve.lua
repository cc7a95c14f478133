-- queue_reserve: after a loss, unpaid orders keep the turns that they were made in: each has its slot before anybody is
-- admitted. A turn takes new holds again when its own token comes.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, 1 when these are the last of them, entries: 48 bytes each, user id (16), number (8), order id (16),
--          until when the order keeps the turn (8)
-- Returns {'ok', how many have their slot here} or {'lost', why}.
local q = q_open()
assert(#ARGV == 4 and #ARGV[4] % 48 == 0, 'queue_reserve: want ARGV epoch, last, done, entries')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
local kept = 0
for i = 1, #ARGV[4], 48 do
  local user, order = string.sub(ARGV[4], i, i + 15), string.sub(ARGV[4], i + 24, i + 39)
  local number, keeps = struct.unpack('>I8', string.sub(ARGV[4], i + 16, i + 23)), struct.unpack('>I8', string.sub(ARGV[4], i + 40, i + 47))
  local held, state, deadline, text = q_working(q, user)
  if held == number and state == 'A' then
    -- It came back by itself, or has another order: this one keeps it, too.
    local turn = q_turn(q, text, deadline)
    turn.orders[q_hex(order)] = keeps
    turn.last = math.max(turn.last, keeps)
    q_set_working(q, user, number, 'A', math.max(deadline, q_turn_end(turn)), turn)
    kept = kept + 1
  elseif not held and keeps > q.now and redis.call('ZCARD', q.work) < q.maxWorking then
    local turn = { holding = q.now, last = keeps, orders = { [q_hex(order)] = keeps } }
    redis.call('ZREM', q.wait, user)
    q_set_working(q, user, number, 'A', keeps, turn)
    q_mark(q, number)
    kept = kept + 1
  end
end
if tonumber(ARGV[3]) == 1 then
  redis.call('HDEL', q.meta, 'orders')
  q.orders = nil
  q_promote(q)
end
return { 'ok', kept }
