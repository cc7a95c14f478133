#!lua
-- rebuild: set the seats of a schedule where they are missing. Never over seats that are there:
-- two instances may rebuild at once, and holds may already stand on the first one's.
--   KEYS[1] string seats   KEYS[2] string owners
--   ARGV    seats, owners
-- Returns 1 when set, 0 when they were there.
assert(#KEYS == 2, 'rebuild: want 2 KEYS')
assert(#ARGV == 2 and #ARGV[2] == 16 * #ARGV[1], 'rebuild: want 16 bytes of owner a seat')

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1])
return 1
