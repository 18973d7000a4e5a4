-- All that the guard does in Redis. One call of it is one decision; Redis runs nothing else meanwhile.
--
--   PREFIX:p:COUNTER:CLIENT          how many places all owners hold together
--   PREFIX:w:COUNTER:SECONDS:CLIENT  how many events the window has; it lives as long as the window
--   PREFIX:o:OWNER                   a hash: how many of each place this owner holds
--   PREFIX:leases                    a sorted set: when the lease of each owner ends, in milliseconds of Redis's clock
--   PREFIX:r:KIND                    a hash: the records of a kind, `END +VALUE`, or `END -` for one that was removed. END is
--                                    in milliseconds of Redis's clock. The field `=` has the time at which the hash was made.
--   PREFIX:c:KIND, PREFIX:e:KIND     sorted sets: when each of them was changed, each at a time of its own, and when it ends
--
-- KEYS[1] is PREFIX:leases. ARGV[1] has words, one on each line, since arguments cost more: the verb, the owner, the
-- length of a lease in milliseconds, and those of the verb. Names are keys without PREFIX. Of places a sum lives for three
-- leases after its last use. A hash lives longer, since a sum without the hashes that it is the sum of could never become
-- right again.
local leases = KEYS[1]
local prefix = string.sub(leases, 1, -7)
local words = {}
for word in string.gmatch(ARGV[1], '[^\n]+') do
    words[#words + 1] = word
end
local verb, owner, lease = words[1], words[2], tonumber(words[3])
local mine = prefix .. 'o:' .. owner
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local SUM_LIVES, HASH_LIVES = 3 * lease, 6 * lease
local MOST = 250 -- places in one call, so that Redis is never held up for long
local MOST_IN_ANSWER = 100 -- records, since the guard takes no longer one

local function number(value)
    return tonumber(value) or 0
end

local function lives_on()
    redis.call('ZADD', leases, now + lease, owner)
    redis.call('PEXPIRE', leases, HASH_LIVES)
    redis.call('PEXPIRE', mine, HASH_LIVES)
end

local function subtract(name, count)
    local key = prefix .. name
    if number(redis.call('GET', key)) > count then
        redis.call('DECRBY', key, count)
    else
        redis.call('DEL', key)
    end
end

-- Give back what owners hold whose lease has ended: MOST places at most, the rest in the next calls.
local function purge()
    local left = MOST
    while left > 0 do
        local ended = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 1)[1]
        if not ended then
            return
        end
        local hash = prefix .. 'o:' .. ended
        local cursor, found = '0', {}
        repeat
            local answer = redis.call('HSCAN', hash, cursor, 'COUNT', left)
            cursor, found = answer[1], answer[2]
        until #found > 0 or cursor == '0'
        for at = 1, #found, 2 do
            subtract(found[at], tonumber(found[at + 1]))
            redis.call('HDEL', hash, found[at])
        end
        left = left - #found / 2
        if redis.call('PEXPIRE', hash, HASH_LIVES) == 0 then
            redis.call('ZREM', leases, ended)
        end
    end
end

-- Words: name, limit, milliseconds of the window or 0, events. The answer is the count of each.
local function take()
    local counts, begins, places, fits = {}, {}, false, true
    for at = 4, #words, 4 do
        local value = redis.call('GET', prefix .. words[at])
        local count, limit = number(value) + words[at + 3], tonumber(words[at + 1])
        counts[#counts + 1] = count
        begins[at] = not value
        fits = fits and (limit <= 0 or count <= limit)
    end
    if not fits then
        return counts
    end
    for at = 4, #words, 4 do
        local name, window, events = words[at], words[at + 2], words[at + 3]
        redis.call('INCRBY', prefix .. name, events)
        if window == '0' then
            places = true
            redis.call('HINCRBY', mine, name, events)
            redis.call('PEXPIRE', prefix .. name, SUM_LIVES)
        elseif begins[at] then
            redis.call('PEXPIRE', prefix .. name, window)
        end
    end
    if places then
        lives_on()
    end
    return counts
end

local function remove(hash, name, held, count)
    if count > 0 and count >= held then
        redis.call('HDEL', hash, name)
    elseif count > 0 then
        redis.call('HINCRBY', hash, name, -count)
    end
end

-- Words: the name of the owner's former hash, see renew(); then as of take().
local function give_back()
    local old = prefix .. 'o:' .. words[4]
    for at = 5, #words, 4 do
        local name, window, events = words[at], words[at + 2], tonumber(words[at + 3])
        if window == '0' then
            local held, before = number(redis.call('HGET', mine, name)), number(redis.call('HGET', old, name))
            local given = math.min(held + before, events)
            if given > 0 then
                subtract(name, given)
                remove(mine, name, held, math.min(held, given))
                remove(old, name, before, given - math.min(held, given))
            end
        else
            local given = math.min(number(redis.call('GET', prefix .. name)), events)
            if given > 0 then
                -- The window, even an empty one, ends when it would have ended.
                redis.call('DECRBY', prefix .. name, given)
            end
        end
    end
    return 0
end

-- Words as of take(). The answer is the count of each and the milliseconds until its window ends.
local function look()
    local seen = {}
    for at = 4, #words, 4 do
        local key = prefix .. words[at]
        local count = number(redis.call('GET', key))
        seen[#seen + 1] = count
        seen[#seen + 1] = words[at + 2] ~= '0' and count > 0 and redis.call('PTTL', key) or 0
    end
    return seen
end

-- Words: the name under which the former hash of the owner goes; 1 in the first of several calls; 1 in the last; and for
-- each place its name, and the least and the most that the owner holds. All places go from the former hash into a new
-- one. What is left in it after the last call is not held any more: its lease ends. A renewal that was interrupted goes
-- on with the same name and without a first call. A place may be in both hashes. The answer is how many leases have ended.
local function renew()
    local former, first, last = words[4], words[5] == '1', words[6] == '1'
    local old = prefix .. 'o:' .. former
    if first and redis.call('EXISTS', mine) == 1 then
        redis.call('RENAME', mine, old)
    end
    local names, keys = {}, {}
    for at = 7, #words, 3 do
        names[#names + 1] = words[at]
        keys[#keys + 1] = prefix .. words[at]
    end
    -- One command for all places costs a third of one for each.
    local former_counts = #names > 0 and redis.call('HMGET', old, unpack(names)) or {}
    local own_counts = #names > 0 and redis.call('HMGET', mine, unpack(names)) or {}
    local sums = #names > 0 and redis.call('MGET', unpack(keys)) or {}
    local held_now, not_held = {}, {}
    for at, name in ipairs(names) do
        local least, most, sum = tonumber(words[3 * at + 5]), tonumber(words[3 * at + 6]), number(sums[at])
        local held = number(former_counts[at]) + number(own_counts[at])
        local count = math.max(least, math.min(held, most))
        if count > 0 then
            held_now[#held_now + 1] = name
            held_now[#held_now + 1] = count
        else
            not_held[#not_held + 1] = name
        end
        -- A sum that Redis has lost is at least what this owner holds.
        local new = math.max(sum + count - held, count)
        if new <= 0 then
            redis.call('DEL', keys[at])
        elseif new == sum then
            redis.call('PEXPIRE', keys[at], SUM_LIVES)
        else
            redis.call('SET', keys[at], new, 'PX', SUM_LIVES)
        end
    end
    if #held_now > 0 then
        redis.call('HSET', mine, unpack(held_now))
    end
    if #not_held > 0 then
        redis.call('HDEL', mine, unpack(not_held))
    end
    if #names > 0 then
        redis.call('HDEL', old, unpack(names))
    end
    lives_on()
    if redis.call('PEXPIRE', old, HASH_LIVES) == 1 then
        redis.call('ZADD', leases, last and 0 or now + lease, former)
    else
        redis.call('ZREM', leases, former)
    end
    return redis.call('ZCOUNT', leases, '-inf', now)
end

local function keys_of_records(kind)
    return prefix .. 'r:' .. kind, prefix .. 'c:' .. kind, prefix .. 'e:' .. kind
end

local function forget(hash, changes, ends, names)
    if #names > 0 then
        redis.call('HDEL', hash, unpack(names))
        redis.call('ZREM', changes, unpack(names))
        redis.call('ZREM', ends, unpack(names))
    end
end

-- Words: the kind, how many records of it there may be, 1: change none that there is; and for each record its key, the
-- milliseconds that it lives, and `+VALUE`, or `-` to remove it. What was removed is known as such as long as the record
-- would have lived. If there are too many, those go that end first, but none that this call puts: others are to learn it.
local function put_records()
    local hash, changes, ends = keys_of_records(words[4])
    local most, only_new = tonumber(words[5]), words[6] == '1'
    redis.call('HSETNX', hash, '=', now)
    local put = {}
    local stamp = math.max(now, number(redis.call('ZREVRANGE', changes, 0, 0, 'WITHSCORES')[2]) + 1)
    for at = 7, #words, 3 do
        local name, end_at, value = words[at], now + words[at + 1], words[at + 2]
        if not (only_new and redis.call('HEXISTS', hash, name) == 1) then
            if value == '-' then
                end_at = number(redis.call('ZSCORE', ends, name) or end_at)
            end
            redis.call('HSET', hash, name, string.format('%.0f %s', end_at, value))
            redis.call('ZADD', changes, stamp, name)
            redis.call('ZADD', ends, end_at, name)
            put[name] = true
            stamp = stamp + 1
        end
    end
    forget(hash, changes, ends, redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, MOST))
    local surplus = math.min(redis.call('ZCARD', ends) - most, MOST)
    if surplus > 0 then
        local first = {}
        for _, name in ipairs(redis.call('ZRANGE', ends, 0, surplus + #words / 3)) do
            if not put[name] and #first < surplus then
                first[#first + 1] = name
            end
        end
        forget(hash, changes, ends, first)
    end
    local last = number(redis.call('ZREVRANGE', ends, 0, 0, 'WITHSCORES')[2])
    for _, key in ipairs({hash, changes, ends}) do
        redis.call('PEXPIRE', key, math.max(last - now, 0) + HASH_LIVES)
    end
    return 0
end

-- Words: the kind, when its hash was made, and the time of the latest change that is known. The answer has these two, 1 if
-- there is more, and for each change the key, the milliseconds left, and `+VALUE` or `-`. It begins with the first change
-- if the hash was made at another time.
local function records_since()
    local hash, changes = keys_of_records(words[4])
    local made, since = number(redis.call('HGET', hash, '=')), tonumber(words[6])
    if made ~= tonumber(words[5]) then
        since = 0
    end
    local found = redis.call('ZRANGEBYSCORE', changes, '(' .. string.format('%.0f', since), '+inf',
        'WITHSCORES', 'LIMIT', 0, MOST_IN_ANSWER)
    local names, answer = {}, {made, number(found[#found] or since), #found == 2 * MOST_IN_ANSWER and 1 or 0}
    for at = 1, #found, 2 do
        names[#names + 1] = found[at]
    end
    local texts = #names > 0 and redis.call('HMGET', hash, unpack(names)) or {}
    for at, name in ipairs(names) do
        local end_at, value = string.match(texts[at] or '', '^(%d+) (.*)$')
        if end_at then
            answer[#answer + 1] = name
            answer[#answer + 1] = end_at - now
            answer[#answer + 1] = value
        end
    end
    return answer
end

purge()
if verb == 'take' then
    return take()
elseif verb == 'give_back' then
    return give_back()
elseif verb == 'look' then
    return look()
elseif verb == 'renew' then
    return renew()
elseif verb == 'put_records' then
    return put_records()
elseif verb == 'records_since' then
    return records_since()
end
return redis.call('ZCOUNT', leases, '-inf', now)
