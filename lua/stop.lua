-- stop: stop the sales of a performance, or let them go on. Where the limits are missing, their
-- rebuild sets the flag from PostgreSQL.
--   KEYS[1] hash limit
--   ARGV    '1' stop, '0' go on
-- Returns 1 when the flag is as wanted, 0 when there is nothing to set it on.
assert(#KEYS == 1, 'stop: want 1 KEY')
assert(#ARGV == 1, 'stop: want 1 ARGV')

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] == '1' then
  redis.call('HSET', KEYS[1], 'stopped', '1')
else
  redis.call('HDEL', KEYS[1], 'stopped')
end
return 1
