'use strict';
/* A client of the gateway: what it keeps, its connection, frames and requests. messages.js goes on with
   messages, acknowledgements and drafts; view.js shows them; rehearse.js has rehearsals and controls. The
   page has all four in it, in this order. */
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
      key, kind, id, messages: [], unread: new Set(), preview: null, typed: '',
      isFresh: false,   // the newest messages have been asked for since the last `connected`
      loading: false, hasMore: true,
    });
    keep('known', [...conversations.values()].map(({ kind, id }) => [kind, id]));
  }
  return conversations.get(key);
}

function becomes(user) {
  if (me === user) return;
  [me, conversations, seen, current] = [user, new Map(), new Set(), null];
  const known = recall('known') ?? [];
  const others = Object.keys(setup.users).filter(user => user !== me);
  const groups = Object.keys(setup.groups).filter(group => setup.groups[group].includes(me));
  others.forEach(id => conversation('user', id));
  groups.forEach(id => conversation('group', id));
  known.forEach(([kind, id]) => conversation(kind, id));
  drafts = recall('drafts') ?? [];
  const typed = recall('typed') ?? {};
  for (const one of conversations.values()) one.typed = typed[one.key] ?? '';
}

/* ── The connection ──────────────────────────────────────────────────────────────────────────────── */

let socket = null, connectionId = null, retry = 0;
let failures = 0;                 // closes since the last time that all was well
let refusals = 0;                 // attempts since a healthy gateway last let this token in
let largest = 0;                  // the most bytes that a frame may have
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
  const lost = { code: 'LOST', message: 'The connection ended before the answer' };
  for (const { reject } of requests.values()) reject(lost);
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
  try {
    const told = JSON.parse(reason);
    return typeof told?.reconnect === 'boolean' ? told : null;
  } catch { return null; }
}

/* In how many ms a client comes back after a close; null: not by itself. What it is told counts, but a
   gateway that closes again and again is not asked at that pace for ever. */
function comeBackAfter(code, told) {
  const isFinal = [1002, 1003, 1007, 1009, 4004, 4005].includes(code);
  if (told ? !told.reconnect : isFinal) return null;
  const pace = backoff(), after = told?.after_ms ?? pace;
  return failures === 1 ? after : Math.max(after, pace);
}

/* Doubles up to 30 s; jittered, so that those who were closed together do not come back together. */
const jittered = (ms, most) => Math.min(ms, most) * (0.5 + Math.random() / 2);
function backoff() {
  return jittered(500 * 2 ** failures++, LONGEST_WAIT);
}

function connectAfter(ms) {
  show('waiting', `Connecting again in ${(ms / 1000).toFixed(1)} s`);
  retry = setTimeout(connect, ms);
}

/* A browser hides the answer to an upgrade, 401 among them. But a gateway that is ready and lets
   nobody in twice does not know the token. */
async function notLetIn() {
  show('waiting', 'No answer');
  const ready = await fetch('/readyz', { cache: 'no-store' }).then(it => it.ok, () => false);
  if (socket || !token) return;   // the user has done something meanwhile
  refusals = ready ? refusals + 1 : 0;
  if (refusals >= (me ? 5 : 2)) {
    leave();
    $('refusal').textContent = 'The gateway lets nobody in with this token: it does not know it (401), '
      + 'or its user has too many connections (429).';
  } else {
    connectAfter(backoff());
  }
}

/* Whoever was offline need not wait: the browser knows when the network is back. */
addEventListener('online', () => { if (document.body.dataset.state === 'waiting') connect(); });

/* A browser cannot send WebSocket pings, so it asks with a request. The first comes after a random
   part of the interval, or all clients of a restarted gateway would ask at once. A connection on which
   nothing came for an interval although it was asked is dead, whatever TCP says. */
function keepAlive(interval) {
  const ping = () => {
    const askedAt = performance.now();
    ask('ping').catch(() => {});
    pingTimer = setTimeout(() => {
      if (heardAt >= askedAt) return ping();
      tell('Nothing came for long, although the gateway was asked: the connection is dead. '
        + 'A client replaces it.');
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
  try {
    const { expires_at } = await ask('refresh_token', { token });
    if (rehearsed === 'expiry' && !expires_at) {
      tell('Refreshed in time: the token holds again, and nothing was closed.');
    }
    refreshBefore(expires_at);
  } catch (failure) { retryLater(failure, refreshToken); }
}

/* ── Frames and requests ─────────────────────────────────────────────────────────────────────────── */

const requests = new Map();       // by request_id: who waits for the answer
let lastRequest = 0;

/* Comes to the answer. Fails with an error frame, or with the code LOST when the connection ends. */
function ask(type, data) {
  return new Promise((resolve, reject) => {
    if (!connectionId) return reject({ code: 'LOST', message: 'Not connected' });
    const request_id = String(++lastRequest);
    const text = JSON.stringify({ type, request_id, data });
    if (new TextEncoder().encode(text).length > largest) {
      return reject({ code: 'TOO_LARGE', message: `It is longer than ${largest} bytes.` });
    }
    requests.set(request_id, { resolve, reject });
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
  handlers[frame.type]?.(frame, line);   // what is not known is ignored: the protocol may grow
}

const handlers = {
  connected, message: pushed, group_message: pushed, presence, offline_complete, error: unasked,
};

function connected(frame) {
  clearTimeout(retry);
  [connectionId, largest] = [frame.connection_id, frame.max_message_size];
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
  const unread = count ? `, and ${count} unread came first` : '';
  if (isReported) tell(`${$('news-text').textContent} It is back${unread}.`);
  isReported = false;
}

function unasked({ code, message }) { tell(`${code}: ${message}`); }
