-- recount: tell the queue how many seats are not sold, from the seats themselves.
--   KEYS[1..7]  the queue's (see prelude)   KEYS[8..]  string seats of every schedule that is still sold
--   ARGV[1..2]  "0", "0"
-- Returns {"done", not sold} or {"absent"} when a schedule has no seats here.
assert(#KEYS >= 7, 'recount: want at least 7 KEYS')

local q = q_open()
local left = #KEYS == 7 and 0 or q_unsold()
if not left then return { 'absent' } end
if q.remaining and q.remaining ~= left then
  q_add_remaining(q, left - q.remaining)
end
return { 'done', left }
