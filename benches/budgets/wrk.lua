-- One request for each line of a file, in turn, each built before the clock starts.
--
--   wrk -s wrk.lua URL -- FILE METHOD PATH WAY HEADER... [=NAME: VALUE...]
--   FILE    lines of tab-separated values; thread i of n takes every n-th line
--   WAY     rotate: begin again at the end; once: every line is used at most once
--   HEADER  what each column is: a header's name (Authorization: "Bearer " is put in
--           front), or `body`
--   =NAME: VALUE  a header that every request has
--
-- At the end one line on stdout: {"requests", "seconds", "failed", "spent"};
-- `spent` is how many threads ran out of lines.

local threads = {}

function setup(thread)
  thread:set('id', #threads)
  table.insert(threads, thread)
end

local requests, at, once = {}, 0, false
spent = 0

function init(args)
  local file, method, path, way = args[1], args[2], args[3], args[4]
  once = way == 'once'
  local columns, common = {}, {}
  for i = 5, #args do
    local name, value = string.match(args[i], '^=([^:]+): (.*)$')
    if name then common[name] = value else columns[#columns + 1] = args[i] end
  end
  local share, nth = tonumber(wrk.headers['Threads']), 0
  wrk.headers['Threads'] = nil
  for line in io.lines(file) do
    if nth % share == id then
      local headers, body, column = { Host = wrk.headers['Host'] }, nil, 0
      for name, value in pairs(common) do headers[name] = value end
      for value in string.gmatch(line, '[^\t]+') do
        column = column + 1
        local name = columns[column]
        if name == 'body' then
          body = value
        elseif name == 'Authorization' then
          headers[name] = 'Bearer ' .. value
        else
          headers[name] = value
        end
      end
      requests[#requests + 1] = wrk.format(method, path, headers, body)
    end
    nth = nth + 1
  end
  assert(#requests > 0, 'no requests in ' .. file)
end

function request()
  at = at + 1
  if at > #requests then
    if once then
      spent = 1
      wrk.thread:stop()
    end
    at = 1
  end
  return requests[at]
end

function done(summary)
  local out = 0
  for _, thread in ipairs(threads) do out = out + thread:get('spent') end
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"failed":%d,"spent":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout, out))
end
