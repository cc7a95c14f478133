-- queue_tick: the sweep, promotion and what a snapshot needs, in one call.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, `gone` of the ranks that the caller has (-1: none), within how many ms the next tick comes
-- Returns {'ok', {view...}, front, bounds, seed, more, overdue, soon, next, kept} or {'lost', why}.
--   front   the lowest numbers waiting, at most a thousand or so, ascending, comma-separated;
--           '' with bounds '' when the caller's ranks still hold
--   bounds  'number:how many wait below it', comma-separated, at every 2^k-th number, coarser with distance
--   more    1 when there is more to promote than one call may do
--   next    the next deadline of a place; -1: there is none
--   kept    as the prelude's q_keeps reads it
--   overdue places whose deadline has passed; soon: those whose deadline is within a minute
local FRONT = 1024
local q = q_open()
local lost = q_lost(q)
if lost then return { 'lost', lost } end
assert(#ARGV == 4, 'queue_tick: want ARGV epoch, last, gone, ms')
local _, more = q_promote(q)
-- Readings are in order by this, whatever the clock does.
q.seq = redis.call('HINCRBY', q.meta, 'seq', 1)
redis.call('HSET', q.meta, 'due', q_text(q.now + tonumber(ARGV[4]) + Q_SLACK_MS))

local function ranks()
  local front, bounds = {}, {}
  local head = redis.call('ZRANGE', q.wait, 0, FRONT - 1, 'WITHSCORES')
  for i = 2, #head, 2 do front[#front + 1] = head[i] end
  if #front == FRONT then
    -- Sixteen boundaries for each doubling of the distance. They are multiples of powers of two,
    -- so that a boundary in use stays in use until it is passed: positions never grow.
    local from, step = q.served, 32
    while from + 16 * step <= q.last do
      local at = math.ceil((from + 16 * step) / step) * step
      while at < from + 32 * step and at <= q.last do
        local number = string.format('%.0f', at)
        bounds[#bounds + 1] = number .. ':' .. redis.call('ZCOUNT', q.wait, '-inf', '(' .. number)
        at = at + step
      end
      step = step * 2
    end
  end
  return table.concat(front, ','), table.concat(bounds, ',')
end

local front, bounds = '', ''
if tonumber(ARGV[3]) ~= (q.gone or 0) then front, bounds = ranks() end
return { 'ok', q_view(q), front, bounds, redis.call('HGET', q.meta, 'seed') or '', more and 1 or 0,
  redis.call('ZCOUNT', q.work, '-inf', string.format('(%.0f', q.now)),
  redis.call('ZCOUNT', q.work, q.now, q.now + 60000),
  tonumber(redis.call('ZRANGE', q.work, 0, 0, 'WITHSCORES')[2]) or -1, q.kept }
