#!lua flags=no-writes
-- queue_state: what stands here of a queue, whether it is the one that was or not. Changes nothing.
--   KEYS[1] hash  {tag}:meta
-- Returns {epoch, last number, the script's clock at the newest reading, Redis's clock now, run id}; -1 where there is none.
assert(#KEYS == 1, 'queue_state: want 1 KEYS')
local found = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'clock')
local time = redis.call('TIME')
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
return { tonumber(found[1]) or -1, tonumber(found[2]) or -1, tonumber(found[3]) or -1,
  time[1] * 1000 + math.floor(time[2] / 1000), run_id }
