-- queue_check_in: a person whose number has come up, or who works, asks.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, user id, number, the token's epoch, until when the caller waits (ms by Redis's clock; 0: not known)
-- Returns {tag, epoch, now, value, notes, holding, last}: tag 'working' (value: deadline), 'waiting' (value: position),
-- 'closed' (value: deadline), 'shut' (admitted, not here before the closing), 'ended', 'old' (the token is of an earlier epoch: put
-- it back first), 'late' (the caller has given up: this is no check-in); notes: how many ended turns
-- are not in Postgres yet; the turn's bounds, ms, where it works. Or {'lost', why}.
local q = q_open()
assert(#ARGV == 6, 'queue_check_in: want ARGV epoch, last, user, number, token epoch, by')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
if q_late(q, ARGV[6]) then return { 'late' } end
local tag, value, turn = 'old', 0, nil
local _
local epoch, number = tonumber(ARGV[5]), tonumber(ARGV[4])
if q_keeps(q, epoch, number) then
  tag, value, _, turn = working_check_in(q, ARGV[3], number)
  -- It may have been put back in the very moments that were lost: Postgres knows whether the turn has ended.
  if tag == 'ended' and epoch < q.epoch then tag = 'old' end
end
return { tag, q.epoch, q.now, value, redis.call('ZCARD', q.ended), turn and turn.holding or 0, turn and turn.last or 0 }
