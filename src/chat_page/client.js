'use strict';
/* A client of the gateway, to be read from here to the end: what it keeps, the connection, requests,
   messages, acknowledgements, drafts. What is shown of it is in view.js, the rehearsals and the
   controls in rehearse.js; the page has all three in it. */
const PAGE = 30, MAX_FRAMES = 300, ACK_WITHIN = 100, CONNECT_WITHIN = 10_000, LONGEST_WAIT = 30_000;
const $ = id => document.getElementById(id);
const setup = JSON.parse($('setup').textContent);
const wait = ms => new Promise(done => setTimeout(done, ms));

/* ── What it keeps ───────────────────────────────────────────────────────────────────────────────── */

let token = sessionStorage.getItem('token');
let me = null;                    // the user, once the gateway has said who it is
let conversations = new Map();    // by key: 'user:bob', 'group:team'
let current = null;               // the conversation on the screen
let seen = new Set();             // ids of messages that came: one that comes twice is dropped
let drafts = [];                  // what was written and is not known to be committed
const copiesToCome = new Set();   // ids of our own messages whose answer came before their copy
const online = new Map();         // user -> boolean, as far as presence has told

/* For this tab alone, and kept over a reload: with localStorage two tabs would send the same drafts. */
const recall = name => JSON.parse(sessionStorage.getItem(`${name}:${me}`) ?? 'null');
const keep = (name, value) => sessionStorage.setItem(`${name}:${me}`, JSON.stringify(value));

function conversation(kind, id) {
  const key = `${kind}:${id}`;
  if (!conversations.has(key)) {
    conversations.set(key, {
      key, kind, id, messages: [], unread: new Set(), hasMore: true, isFresh: false, loading: false, preview: null, typed: '',
    });
    keep('known', [...conversations.values()].map(({ kind, id }) => [kind, id]));
  }
  return conversations.get(key);
}

function becomes(user) {
  if (me === user) return;
  [me, conversations, seen, current] = [user, new Map(), new Set(), null];
  const known = recall('known') ?? [];
  for (const other of Object.keys(setup.users)) if (other !== me) conversation('user', other);
  for (const [group, members] of Object.entries(setup.groups)) if (members.includes(me)) conversation('group', group);
  for (const [kind, id] of known) conversation(kind, id);
  drafts = recall('drafts') ?? [];
  for (const [key, text] of Object.entries(recall('typed') ?? {})) if (conversations.has(key)) conversations.get(key).typed = text;
}

/* ── The connection ──────────────────────────────────────────────────────────────────────────────── */

let socket = null, connectionId = null, retry = 0;
let failures = 0;                 // closes since the last time that all was well
let refusals = 0;                 // attempts since a healthy gateway last let this token in
let heardAt = 0, pingTimer = 0, refreshTimer = 0;

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

function connect() {
  hangUp();
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const url = `${scheme}://${location.host}${setup.path}`;
  // A page can set no header field but this one, and what is in a URL ends up in logs.
  socket = new WebSocket(url, ['im.v1', `base64url.bearer.${base64url(token)}`]);
  note(`Connecting to ${url}`);
  show('connecting', 'Connecting…');
  socket.onmessage = event => receive(event.data);
  socket.onclose = event => onClosed(event.code, event.reason);
  retry = setTimeout(connect, CONNECT_WITHIN);   // a browser alone would wait for minutes
}

/* Lets go of the connection: whatever still comes of it is nobody's business. */
function hangUp() {
  if (socket) {
    socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }
  forget();
}

/* What was true of the connection is not of the next one. */
function forget() {
  clearTimeout(retry);
  clearTimeout(pingTimer);
  clearTimeout(refreshTimer);
  socket = connectionId = null;
  online.clear();
  for (const { reject } of requests.values()) reject({ code: 'LOST', message: 'The connection ended before the answer' });
  requests.clear();
}

function onClosed(code, reason) {
  const letIn = connectionId !== null;
  forget();
  note(`Closed: ${code} ${reason}`);
  if (!letIn) return notLetIn();
  const told = parse(reason);
  const after = comeBackAfter(code, told);
  if (after === null) show('ended', 'Closed');
  else connectAfter(after);
  report(code, told, after);
}

/* The reason of a Close frame is JSON, unless a proxy wrote it. */
function parse(reason) {
  try { return JSON.parse(reason); } catch { return null; }
}

/* In how many ms a client comes back after a close; null: not by itself. What it is told counts, but a
   gateway that closes again and again is not asked at that pace for ever. */
function comeBackAfter(code, told) {
  const final = [1002, 1003, 1007, 1009, 4004, 4005].includes(code);
  if (told ? !told.reconnect : final) return null;
  const pace = backoff();
  return told && failures === 1 ? told.after_ms : Math.max(told?.after_ms ?? 0, pace);
}

/* Doubles up to 30 s; jittered, so that those who were closed together do not come back together. */
function backoff() {
  return Math.min(LONGEST_WAIT, 500 * 2 ** failures++) * (0.5 + Math.random() / 2);
}

function connectAfter(ms) {
  show('waiting', `Connecting again in ${(ms / 1000).toFixed(1)} s`);
  retry = setTimeout(connect, ms);
}

/* A browser hides the answer to an upgrade, 401 among them. But a gateway that is ready and lets
   nobody in twice does not know the token. */
async function notLetIn() {
  show('waiting', 'No answer');
  const ready = await fetch('/readyz', { cache: 'no-store' }).then(answer => answer.ok, () => false);
  if (socket || !token) return;   // the user has done something meanwhile
  refusals = ready ? refusals + 1 : 0;
  if (refusals >= (me ? 5 : 2)) {
    leave();
    $('refusal').textContent = 'The gateway lets nobody in with this token: it does not know it (401), or its user has too many connections (429).';
    return;
  }
  connectAfter(backoff());
}

/* Whoever was offline need not wait: the browser knows when the network is back. */
addEventListener('online', () => { if (token && !connectionId && document.body.dataset.state !== 'ended') connect(); });

/* A browser cannot send WebSocket pings, so it asks with a request. The first comes after a random
   part of the interval, or all clients of a restarted gateway would ask at once. A connection on which
   nothing came for an interval although it was asked is dead, whatever TCP says. */
function keepAlive(interval) {
  const ping = () => {
    const askedAt = performance.now();
    ask('ping').catch(() => {});
    pingTimer = setTimeout(() => {
      if (heardAt >= askedAt) return ping();
      tell('Nothing came for long, although the gateway was asked: the connection is dead. A client replaces it.');
      note('Silent: replaced');
      connect();
    }, interval);
  };
  pingTimer = setTimeout(ping, interval * Math.random());
}

/* A token that ends is refreshed after half of its time. Where from? An app asks its login service;
   here a user has but one. */
function refreshBefore(expiresAt) {
  clearTimeout(refreshTimer);
  if (!expiresAt || letExpire) return;
  refreshTimer = setTimeout(refreshToken, (expiresAt * 1000 - Date.now()) / 2);
}

async function refreshToken() {
  const { expires_at: at } = await ask('refresh_token', { token });
  if (rehearsed === 'expiry' && !at) tell('Refreshed in time: the token holds again, and nothing was closed.');
  refreshBefore(at);
}

/* ── Frames and requests ─────────────────────────────────────────────────────────────────────────── */

const requests = new Map();       // by request_id: who waits for the answer
let lastRequest = 0;

/* Comes to the answer. Fails with an error frame, or with the code LOST when the connection ends. */
function ask(type, data) {
  return new Promise((resolve, reject) => {
    if (!connectionId) return reject({ code: 'LOST', message: 'Not connected' });
    const request_id = String(++lastRequest);
    requests.set(request_id, { resolve, reject });
    const text = JSON.stringify({ type, request_id, data });
    wire('sent', text.replaceAll(JSON.stringify(token), '"…"'));
    socket.send(text);
  });
}

function receive(text) {
  heardAt = performance.now();
  const line = wire('received', text), frame = JSON.parse(text);
  const waiting = requests.get(frame.request_id);
  requests.delete(frame.request_id);
  if (waiting) return frame.type === 'error' ? waiting.reject(frame) : waiting.resolve(frame);
  const handlers = { connected, message: pushed, group_message: pushed, presence, offline_complete, error: unasked };
  handlers[frame.type]?.(frame, line);   // what is not known is ignored: the protocol may grow
}

function connected(frame) {
  clearTimeout(retry);
  connectionId = frame.connection_id;
  refusals = 0;
  becomes(frame.user_id);
  for (const one of conversations.values()) one.isFresh = false;
  show('connected', `${me} at ${frame.gateway_id}`);
  enter();
  keepAlive(frame.ping_interval * 1000);
  sendDrafts();
  acknowledge();
  if (current) loadNewest(current);
  for (const one of [...conversations.values()].slice(0, 12)) loadPreview(one);
}

function presence({ user_id, status }) {
  online.set(user_id, status === 'online');
  draw();
}

/* What was unread has come before this. */
function offline_complete({ count }) {
  failures = 0;
  if (rehearsed) tell(`${$('news-text').textContent} It is back${count ? `, and ${count} unread came first` : ''}.`);
  else if (count) tell(`${count} unread ${count === 1 ? 'message' : 'messages'} came while you were away.`);
  rehearsed = null;
}

function unasked({ code, message }) { tell(`${code}: ${message}`); }

/* ── Messages ────────────────────────────────────────────────────────────────────────────────────── */

const of = message => message.group_id ? conversation('group', message.group_id)
  : conversation('user', message.from_user_id === me ? message.to_user_id : message.from_user_id);
const isOwn = message => message.from_user_id === me;

function pushed(message, line) {
  const where = of(message);
  if (copiesToCome.delete(message.id)) return;
  if (seen.has(message.id)) {
    // Perhaps the acknowledgement was lost: so once more, unless it is still to be read.
    if (!isOwn(message) && !where.unread.has(message.id)) acknowledge(message.id);
    annotate(line, 'Dropped: this id has come before. It is acknowledged again.');
    if (rehearsed === 'duplicate') tell('The same message came twice. The page has dropped the second one by its id, and acknowledged it: see the frames.');
    return;
  }
  seen.add(message.id);
  if (isOwn(message)) settle(message);
  else where.unread.add(message.id);
  where.messages.push(message);
  where.preview = message;
  draw();
  markShown();
}

/* The newest page: on opening, and after a reconnect, when another device may have read what came
   meanwhile. What does not join on to what is here replaces it. */
async function loadNewest(where) {
  if (where.isFresh || where.loading) return;
  where.loading = true;
  const before = new Set(where.messages);
  try {
    const { messages: page, has_more } = await historyOf(where, '');
    const ids = new Set(page.map(message => message.id));
    const joint = where.messages.findIndex(message => ids.has(message.id));
    const older = joint > 0 ? where.messages.slice(0, joint) : [];
    const newer = where.messages.filter(message => !before.has(message) && !ids.has(message.id));
    where.messages = [...older, ...page, ...newer];
    if (!older.length) where.hasMore = has_more;
    where.isFresh = true;
    page.forEach(message => seen.add(message.id));
  } catch (failure) { retryLater(failure, () => loadNewest(where)); }
  where.loading = false;
  draw();
  markShown();
}

async function loadOlder(where) {
  if (!where.hasMore || !where.isFresh || where.loading) return;
  where.loading = true;
  try {
    const { messages: page, has_more } = await historyOf(where, where.messages[0]?.id ?? '');
    const fresh = page.filter(message => !seen.has(message.id));
    fresh.forEach(message => seen.add(message.id));
    where.messages.unshift(...fresh);
    where.hasMore = has_more;
  } catch (failure) { tell(failure.message); }
  where.loading = false;
  draw();
}

function historyOf(where, before_id, limit = PAGE) {
  return where.kind === 'group' ? ask('get_group_history', { group_id: where.id, before_id, limit })
    : ask('get_history', { user_id: where.id, before_id, limit });
}

/* The last line for the list; the message counts as neither seen nor read. */
async function loadPreview(where) {
  if (where.preview) return;
  const { messages } = await historyOf(where, '', 1).catch(() => ({ messages: [] }));
  where.preview ??= messages[0] ?? null;
  draw();
}

const isPassing = ({ code }) => ['SERVICE_UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RATE_LIMITED', 'INTERNAL'].includes(code);
function retryLater(failure, again) {
  if (isPassing(failure)) setTimeout(again, 1000 + 1000 * Math.random());
  else if (failure.code !== 'LOST') tell(failure.message);   // after LOST, `connected` begins anew
}

/* ── Acknowledgements: only of what was on the screen, many with one request ─────────────────────── */

const toAcknowledge = new Set();
let ackTimer = 0;

function acknowledge(...ids) {
  ids.forEach(id => toAcknowledge.add(id));
  if (!ackTimer && toAcknowledge.size) ackTimer = setTimeout(sendAcks, ACK_WITHIN);
}

async function sendAcks() {
  const ids = [...toAcknowledge].slice(0, 200);
  try {
    await ask('ack', { message_ids: ids });
    ids.forEach(id => toAcknowledge.delete(id));
  } catch (failure) { if (isPassing(failure)) await wait(1000); }
  ackTimer = 0;
  if (connectionId) acknowledge();
}

/* What is in the open conversation, in a page that is looked at, scrolled to the end, has been read. */
function markShown() {
  const isShown = document.visibilityState === 'visible' && $('chat').checkVisibility() && atEnd();
  if (!isShown || !current?.unread.size) return;
  acknowledge(...current.unread);
  current.unread.clear();
  draw();
}
document.addEventListener('visibilitychange', markShown);

/* ── Drafts: sent one at a time, so that they stay in order, and repeated until the answer is known ─ */

let sending = false;

/* The id makes the message one, however often the request is sent. */
function write(where, content) {
  // Without TLS and elsewhere than on this machine a page has no crypto.randomUUID.
  const client_message_id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  drafts.push({ client_message_id, kind: where.kind, to: where.id, content, at: Date.now() / 1000 });
  keep('drafts', drafts);
  draw(true);
  sendDrafts();
}

async function sendDrafts() {
  if (sending) return;
  sending = true;
  for (let tries = 0; connectionId;) {
    const draft = drafts.find(draft => !draft.failure);
    if (!draft) break;
    const { client_message_id, content } = draft;
    try {
      const sent = await (draft.kind === 'group' ? ask('send_group_message', { group_id: draft.to, content, client_message_id })
        : ask('send_message', { to_user_id: draft.to, content, client_message_id }));
      if (tries) tell('The services answer again: what waited is sent, and once.');
      tries = 0;
      settle({ ...sent, from_user_id: me, content, [draft.kind === 'group' ? 'group_id' : 'to_user_id']: draft.to });
    } catch (failure) {
      if (isPassing(failure)) await wait(Math.min(8000, 500 * 2 ** tries++) * (0.5 + Math.random() / 2));
      else if (failure.code !== 'LOST') draft.failure = failure.message;
    }
    draw();
  }
  sending = false;
}

/* A message of ours is committed: its answer says so, or its copy, whichever comes first. */
function settle(message) {
  const index = drafts.findIndex(draft => draft.client_message_id === message.client_message_id);
  if (index < 0) return;
  drafts.splice(index, 1);
  keep('drafts', drafts);
  if (message.type !== 'message_sent' || seen.has(message.id)) return;
  seen.add(message.id);
  copiesToCome.add(message.id);
  const where = of(message);
  where.messages.push(message);
  where.preview = message;
}
