-- queue_check_in: a person whose number has come up, or who works, asks.
--   KEYS   as the prelude says
--   ARGV   epoch, last number, user id, number, the token's epoch
-- Returns {tag, epoch, now, value, notes, holding, last}: tag 'working' (value: deadline), 'waiting' (value: position),
-- 'closed' (value: deadline), 'ended', 'old' (the token is of an earlier epoch: put it back first); notes: how many ended turns
-- are not in Postgres yet; the turn's bounds, ms, where it works. Or {'lost', why}.
local q = q_open()
assert(#ARGV == 5, 'queue_check_in: want ARGV epoch, last, user, number, token epoch')
local lost = q_lost(q)
if lost then return { 'lost', lost } end
local tag, value, turn = 'old', 0, nil
local _
if tonumber(ARGV[5]) == q.epoch then
  tag, value, _, turn = working_check_in(q, ARGV[3], tonumber(ARGV[4]))
end
return { tag, q.epoch, q.now, value, redis.call('ZCARD', q.ended), turn and turn.holding or 0, turn and turn.last or 0 }
