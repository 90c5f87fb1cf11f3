"""The ledger's steps: one Lua script per event, each atomic in Redis.

All steps take the same KEYS (tasks/keys.py) and share the prelude. The heart is ``next_tickets``: it says which
chunks need a ticket now, first those whose ticket or lease lapsed, then fresh ones as far as the gate allows. Every
event ends with it, so recovery and release are one mechanism. Publishing the tickets is the caller's part; if it
dies before, the chunks stay in ``open`` and are due again later.

Only commands of Redis 6.2 are used. Times are milliseconds of Redis TIME, so no host's clock matters.
"""

from __future__ import annotations

_PRELUDE = """
local job, open, leases, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local journal, failed, active, queue = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
-- Not among the KEYS: who passes a key must be allowed to write it, and a submitter may only read this one.
local done = string.gsub(job, '^penstock:job:', 'penstock:done:', 1)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function text(number) return string.format('%.0f', number) end
local function get(field) return redis.call('HGET', job, field) end
local function get_number(field) return tonumber(get(field) or '0') end
local function add(field, value) redis.call('HINCRBY', job, field, value) end
local function is_live()
  local state = get('state')
  return state == 'submitting' or state == 'running'
end

-- How many tickets the queue may take. One that lapsed may still lie in it while nobody serves it, so what lies there
-- counts too, against the gates of all jobs, as several may share a queue.
local function queue_room()
  local length, width = redis.call('LLEN', queue), get_number('gate')
  if length < width then return width - length end
  local id = get('id')
  for _, other in ipairs(redis.call('SMEMBERS', active)) do
    if other ~= id then
      width = width + tonumber(redis.call('HGET', string.sub(job, 1, #job - #id) .. other, 'gate') or '0')
    end
  end
  return width - length
end

-- Takes tickets out of the gate: returns the chunks that need one now and notes when each ticket lapses.
local function next_tickets()
  local tickets = {}
  if not is_live() then return tickets end
  local lapse = text(now + get_number('ticket_ms'))
  -- What is neither due nor leased waits in the broker. There are no more leases than slots.
  local waiting = redis.call('ZCOUNT', open, '(' .. text(now), '+inf')
  for _, chunk in ipairs(redis.call('HKEYS', leases)) do
    local lapses = redis.call('ZSCORE', open, chunk)
    if lapses and tonumber(lapses) > now then waiting = waiting - 1 end
  end
  local room = get_number('gate') - waiting
  if room > 0 then room = math.min(room, queue_room()) end
  if room <= 0 then return tickets end
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', text(now), 'LIMIT', 0, room)) do
    local lease = redis.call('HGET', leases, chunk)
    if lease and lease ~= '0' then redis.call('HSET', journal, chunk .. ':why', 'its slot fell silent') end
    redis.call('HDEL', leases, chunk)
    redis.call('ZADD', open, lapse, chunk)
    tickets[#tickets + 1] = tonumber(chunk)
  end
  local released, announced = get_number('released'), get_number('announced')
  local first = released
  while #tickets < room and released < announced do
    if redis.call('HEXISTS', done, text(released)) == 0 then  -- else a recovery found its result
      redis.call('ZADD', open, lapse, text(released))
      tickets[#tickets + 1] = released
    end
    released = released + 1
  end
  if released > first then redis.call('HSET', job, 'released', text(released)) end
  return tickets
end

local function finish(state, reason)
  -- First what takes no memory: a full server refuses the first write that may take some, and none after it. So a job
  -- can be cancelled to make room.
  redis.call('SREM', active, get('id'))
  redis.call('HSET', job, 'state', state, 'finished_ms', text(now))
  if reason then redis.call('HSET', job, 'reason', reason) end
end

local function finish_when_complete()
  local total = get('total')
  if total and get('state') == 'running' and get_number('recorded') == tonumber(total) then
    finish('done')
  end
end

-- Adds the counts of a recorded chunk to those of the job, or takes them back. Its note says: token rows failed
-- truncated tokens padded bytes checksum duplicate cached; those of earlier releases end before.
local function count_record(note, sign)
  local fields, i = {
    'rows_done', 'failed_rows', 'truncated_rows', 'tokens', 'padded_tokens', false, false, 'duplicate_rows',
    'cached_rows'
  }, 0
  for number in string.gmatch(note, '%S+') do
    if fields[i] then add(fields[i], text(0 + sign * tonumber(number))) end
    i = i + 1
  end
  add('recorded', sign)
end

-- Keeps a recorded chunk with error rows in mind for a retry. Returns how many there are.
local function note_failed(chunk, note)
  local failed_rows = string.match(note, '^%d+ %d+ (%d+)')
  if failed_rows ~= '0' then redis.call('SADD', failed, chunk) end
  return failed_rows
end

local function is_mine(lease, slot) return string.match(lease, '^%d+ (.*)$') == slot end

local function holds(chunk, token)
  local lease = redis.call('HGET', leases, chunk)
  return lease and string.match(lease, '^(%d+) ') == token
end
"""

#: ARGV job spec gate ticket_ms signature: the job exists, in state submitting. Returns 1, or 0 if it was there already.
CREATE = """
if redis.call('EXISTS', job) == 1 then return 0 end
redis.call('HSET', job, 'id', ARGV[1], 'spec', ARGV[2], 'state', 'submitting', 'gate', ARGV[3],
           'ticket_ms', ARGV[4], 'created_ms', text(now), 'signature', ARGV[5])
redis.call('SADD', active, ARGV[1])
redis.call('ZADD', KEYS[9], text(now), ARGV[1])
redis.call('SET', KEYS[10], ARGV[1])
return 1
"""

#: ARGV chunk rows bytes: the input of this chunk is in the store. Announcing it twice changes nothing.
#: Returns {state, ticket...}; the state is 'gap' if the ledger does not know of the chunk before.
ANNOUNCE = """
local state = get('state')
if state == 'submitting' and tonumber(ARGV[1]) > get_number('announced') then return {'gap'} end
if state == 'submitting' and tonumber(ARGV[1]) == get_number('announced') then
  add('announced', 1)
  add('rows', ARGV[2])
  add('input_bytes', ARGV[3])
end
local tickets = next_tickets()
table.insert(tickets, 1, state or 'unknown')
return tickets
"""

#: ARGV chunks kept_types: the corpus ended, the job has this many chunks. Returns {state, ticket...} as ANNOUNCE does.
SEAL = """
if get('state') == 'submitting' and get_number('announced') ~= tonumber(ARGV[1]) then return {'gap'} end
if get('state') == 'submitting' and get_number('announced') == tonumber(ARGV[1]) then
  redis.call('HSET', job, 'state', 'running', 'total', ARGV[1], 'kept_types', ARGV[2], 'sealed_ms', text(now))
  finish_when_complete()
end
local tickets = next_tickets()
table.insert(tickets, 1, get('state') or 'unknown')
return tickets
"""

#: KEYS[9] is the slot's own hash, in which its node finds what to free if it dies.
#: ARGV chunk slot lease_ms: a slot asks for a chunk. A slot does one chunk at a time, so a lease that it holds
#: already is one whose reply was lost: it is granted anew and is no further attempt. Returns
#: {'leased', token, attempts, spec, its signature, weights that began the job or '', journal: what was learned, rows
#: then at work, how it ended, ticket...}, or {'void', why} if there is nothing to do. The ticket that led here left the
#: queue, so another one may enter.
CLAIM = """
local chunk = ARGV[1]
if not is_live() then return {'void', get('state') or 'unknown job'} end
local due = redis.call('ZSCORE', open, chunk)
if not due then return {'void', 'recorded or not released'} end
local lease = redis.call('HGET', leases, chunk)
local is_live_lease = lease and tonumber(due) > now
if is_live_lease and not is_mine(lease, ARGV[2]) then return {'void', 'leased'} end
-- Not before the clock: a server that lost its last writes would otherwise grant the same token twice.
local token = math.max(get_number('fence') + 1, now)
redis.call('HSET', job, 'fence', text(token))
local count = redis.call('HINCRBY', attempts, chunk, is_live_lease and 0 or 1)
redis.call('HSET', leases, chunk, text(token) .. ' ' .. ARGV[2])
redis.call('ZADD', open, text(now + tonumber(ARGV[3])), chunk)
redis.call('HSETNX', job, 'first_claim_ms', text(now))
if redis.call('EXISTS', KEYS[9]) == 1 then
  redis.call('HSET', KEYS[9], 'claim', get('id') .. ' ' .. chunk .. ' ' .. text(token))
end
local answer = {'leased', text(token), count, get('spec'), get('signature') or '', get('weights') or ''}
for i, note in ipairs(redis.call('HMGET', journal, chunk, chunk .. ':now', chunk .. ':why')) do
  answer[6 + i] = note or ''
end
for _, ticket in ipairs(next_tickets()) do answer[#answer + 1] = ticket end
return answer
"""

#: ARGV chunk token lease_ms: the slot is alive. Returns 1, or 0 if the lease is no longer its own.
TOUCH = """
if not is_live() or not holds(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZADD', open, 'XX', text(now + tonumber(ARGV[3])), ARGV[1])
return 1
"""

#: ARGV chunk token learned now condemned most_condemned: these rows go to work next, and this is what earlier attempts
#: taught. When it condemned one row more, the attempts before were worth it, and do not count against the chunk; but
#: the attempt at work is no first one. Returns 1, or 0 if the lease is no longer the slot's.
JOURNAL = """
if not is_live() or not holds(ARGV[1], ARGV[2]) then return 0 end
local condemned, before = tonumber(ARGV[5]), tonumber(redis.call('HGET', journal, ARGV[1] .. ':condemned') or '0')
if condemned > before then
  redis.call('HSET', journal, ARGV[1] .. ':condemned', condemned)
  if condemned <= tonumber(ARGV[6]) then redis.call('HSET', attempts, ARGV[1], 2) end
end
redis.call('HSET', journal, ARGV[1], ARGV[3], ARGV[1] .. ':now', ARGV[4])
redis.call('HDEL', journal, ARGV[1] .. ':why')
return 1
"""

#: ARGV chunk token note weights dim on_error read tokenise model write idle (s):
#: a result is in the store. The first record of a chunk wins. Returns {outcome, ticket...} with outcome
#: 'recorded', 'late' (another was first), 'weights' (other weights are pinned) or the state of a job that ended.
RECORD = """
local chunk, token = ARGV[1], ARGV[2]
if not is_live() then return {get('state') or 'unknown job'} end
if not redis.call('ZSCORE', open, chunk) then return {'late'} end
local pinned = get('weights')
if pinned and pinned ~= ARGV[4] then
  if holds(chunk, token) then
    redis.call('HDEL', leases, chunk)
    redis.call('HINCRBY', attempts, chunk, -1)
    redis.call('ZADD', open, text(now), chunk)
  end
  return {'weights'}
end
redis.call('HSET', job, 'weights', ARGV[4], 'dim', ARGV[5], 'last_record_ms', text(now))
redis.call('HSET', done, chunk, ARGV[3])
redis.call('ZREM', open, chunk)
redis.call('HDEL', leases, chunk)
redis.call('HDEL', attempts, chunk)
redis.call('HDEL', journal, chunk, chunk .. ':now', chunk .. ':why', chunk .. ':stops', chunk .. ':condemned')
count_record(ARGV[3], 1)
for i, field in ipairs({'read_s', 'tokenise_s', 'model_s', 'write_s', 'idle_s'}) do
  redis.call('HINCRBYFLOAT', job, field, ARGV[6 + i])
end
local failed_rows = note_failed(chunk, ARGV[3])
if failed_rows ~= '0' and ARGV[6] == 'fail' then
  finish('failed', failed_rows .. ' rows of chunk ' .. chunk .. ' failed')
end
finish_when_complete()
local tickets = next_tickets()
table.insert(tickets, 1, 'recorded')
return tickets
"""

#: ARGV chunk token ending delay_ms why most_stops: the lease is given up; the chunk may be taken again after the delay.
#: Until then nobody has the lease, which no claim and no reconciler takes for a lost ticket. How the attempt ended:
#: 'forgiven' (handed back: it does not count), 'stopped' (somebody ended the slot: likewise, but a row may do that too,
#: so after a few times it is taken for 'died'), 'failed' (it counts, but the process lives: no evidence against the
#: rows at work), 'died' (it counts, and is). Returns the tickets.
FREE = """
if holds(ARGV[1], ARGV[2]) then
  if ARGV[4] == '0' then
    redis.call('HDEL', leases, ARGV[1])
  else
    redis.call('HSET', leases, ARGV[1], '0')
  end
  redis.call('ZADD', open, 'XX', text(now + tonumber(ARGV[4])), ARGV[1])
  local ending = ARGV[3]
  if ending == 'stopped' and redis.call('HINCRBY', journal, ARGV[1] .. ':stops', 1) > tonumber(ARGV[6]) then
    ending = 'died'
  end
  if ending == 'forgiven' or ending == 'stopped' then redis.call('HINCRBY', attempts, ARGV[1], -1) end
  if ending ~= 'died' then redis.call('HDEL', journal, ARGV[1] .. ':now') end
  if ARGV[5] ~= '' then redis.call('HSET', journal, ARGV[1] .. ':why', ARGV[5]) end
end
return next_tickets()
"""

#: ARGV grace_ms: look for tickets that were lost. An empty queue while chunks are released and not leased means
#: that their tickets are gone, save those that a node took in the last moments. Returns the tickets.
RECONCILE = """
if redis.call('LLEN', queue) == 0 then
  local issued_before = now + get_number('ticket_ms') - tonumber(ARGV[1])
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', open, '(' .. text(now), text(issued_before))) do
    if redis.call('HEXISTS', leases, chunk) == 0 then redis.call('ZADD', open, text(now), chunk) end
  end
end
return next_tickets()
"""

#: ARGV reason: the job ends here, by will ('cancelled') or by fault ('failed'). Returns the state it has now.
END = """
if is_live() then
  finish(ARGV[1], ARGV[2] ~= '' and ARGV[2] or nil)
  if ARGV[1] == 'cancelled' then redis.call('DEL', open, leases, attempts, journal) end
end
return get('state')
"""

#: ARGV chunk...: reopens chunks of a job that ended: those named here, whose results are damaged, or else those with
#: error rows; and whatever was still open. Returns {state before, recorded chunks reopened, ticket...}.
RETRY = """
local state = get('state')
if state ~= 'done' and state ~= 'failed' or not get('total') then return {state or 'unknown', 0} end
local chunks = #ARGV > 0 and ARGV or redis.call('SMEMBERS', failed)
if state == 'done' and #chunks == 0 then return {state, 0} end
local reopened = 0
for _, chunk in ipairs(chunks) do
  local note = redis.call('HGET', done, chunk)
  if note and not redis.call('ZSCORE', open, chunk) then
    count_record(note, -1)
    redis.call('ZADD', open, text(now), chunk)
    reopened = reopened + 1
  end
  redis.call('SREM', failed, chunk)
end
redis.call('DEL', attempts, journal)
redis.call('HDEL', job, 'reason', 'finished_ms')
redis.call('HSET', job, 'state', 'running')
redis.call('SADD', active, get('id'))
finish_when_complete()
local tickets = next_tickets()
table.insert(tickets, 1, reopened)
table.insert(tickets, 1, state)
return tickets
"""

#: ARGV job spec ticket_ms created_ms signature [chunks rows bytes kept_types]: a recovery found this job in the store,
#: with its totals if it is sealed. It comes back behind a shut gate, unless the ledger has it. The submission key leads
#: to the youngest job.
RESTORE = """
if redis.call('EXISTS', job) == 0 then
  redis.call('HSET', job, 'id', ARGV[1], 'spec', ARGV[2], 'state', 'submitting', 'gate', 0,
             'ticket_ms', ARGV[3], 'created_ms', ARGV[4], 'signature', ARGV[5])
  redis.call('SADD', active, ARGV[1])
  redis.call('ZADD', KEYS[9], ARGV[4], ARGV[1])
  local other = redis.call('GET', KEYS[10])
  local since = other and redis.call('HGET', 'penstock:job:' .. other, 'created_ms')
  if not since or tonumber(since) < tonumber(ARGV[4]) then redis.call('SET', KEYS[10], ARGV[1]) end
end
if ARGV[6] and get('state') == 'submitting' then
  redis.call('HSET', job, 'state', 'running', 'announced', ARGV[6], 'total', ARGV[6], 'rows', ARGV[7],
             'input_bytes', ARGV[8], 'kept_types', ARGV[9], 'sealed_ms', text(now))
end
return 1
"""

#: ARGV chunk note weights dim: a recovery found this result in the store. The first one counts, and its weights.
ADOPT = """
if not is_live() or redis.call('HEXISTS', done, ARGV[1]) == 1 then return 0 end
if tonumber(ARGV[1]) >= get_number('announced') then return 0 end
if (get('weights') or ARGV[3]) ~= ARGV[3] then return 0 end
redis.call('HSET', job, 'weights', ARGV[3], 'dim', ARGV[4])
redis.call('HSET', done, ARGV[1], ARGV[2])
redis.call('ZREM', open, ARGV[1])
redis.call('HDEL', leases, ARGV[1])
count_record(ARGV[2], 1)
note_failed(ARGV[1], ARGV[2])
return 1
"""

#: ARGV gate: lets tickets through that many at a time, from now on. Returns the tickets.
OPEN_GATE = """
if redis.call('EXISTS', job) == 0 then return {} end
redis.call('HSET', job, 'gate', ARGV[1])
finish_when_complete()
return next_tickets()
"""

#: ARGV job: nothing will ask for this job any more but its removal: it counts as cancelled, and no submission finds it.
#: Deletes first, so that a full server lets it through. Returns 1, or 0 if the job is not over.
WITHDRAW = """
if is_live() then return 0 end
redis.call('DEL', open, leases, attempts, journal)
if redis.call('GET', KEYS[10]) == ARGV[1] then redis.call('DEL', KEYS[10]) end
if redis.call('EXISTS', job) == 1 then
  redis.call('HSET', job, 'state', 'cancelled', 'reason', 'it is being removed')
end
return 1
"""

#: Forgets a job with all that belongs to it. Returns 1, or 0 if it is not over.
REMOVE = """
if is_live() then return 0 end
redis.call('DEL', job, open, leases, attempts, journal, failed, KEYS[11])
redis.call('DEL', done)
redis.call('SREM', active, ARGV[1])
redis.call('ZREM', KEYS[9], ARGV[1])
if redis.call('GET', KEYS[10]) == ARGV[1] then redis.call('DEL', KEYS[10]) end
return 1
"""

#: Every step by its name, prelude included.
STEPS = {
    name: _PRELUDE + body
    for name, body in {
        "create": CREATE,
        "announce": ANNOUNCE,
        "seal": SEAL,
        "claim": CLAIM,
        "touch": TOUCH,
        "journal": JOURNAL,
        "record": RECORD,
        "free": FREE,
        "reconcile": RECONCILE,
        "end": END,
        "retry": RETRY,
        "restore": RESTORE,
        "adopt": ADOPT,
        "open_gate": OPEN_GATE,
        "withdraw": WITHDRAW,
        "remove": REMOVE,
    }.items()
}
