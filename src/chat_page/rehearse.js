/* ── Rehearsals ──────────────────────────────────────────────────────────────────────────────────── */

const CLOSES = [
  { what: 'protocol_error', code: 1002,
    why: 'The client broke the WebSocket protocol.',
    now: 'A client would do so again: it has to be mended.' },
  { what: 'binary_frame', code: 1003,
    why: 'The client sent a binary frame; this protocol is JSON in text frames.',
    now: 'A client has to be mended.' },
  { what: 'not_utf8', code: 1007,
    why: 'The client sent text that is not UTF-8.',
    now: 'A client has to be mended.' },
  { what: 'too_large', code: 1009,
    why: 'A message was over max_message_size, which “connected” tells.',
    now: 'A client has to send less.' },
  { what: 'internal_error', code: 1011,
    why: 'Something failed inside the gateway.',
    now: 'A client comes back, ever more slowly if that goes on.' },
  { what: 'shutdown', code: 1012,
    why: 'The gateway is shutting down; each client is told another time.',
    now: 'A client comes back then, and not sooner.' },
  { what: 'slow_consumer', code: 4001,
    why: 'The client was behind, and took next to nothing for a minute.',
    now: 'A client comes back; what is unread comes again.' },
  { what: 'idle', code: 4002,
    why: 'A ping stayed unanswered for the idle timeout.',
    now: 'A client comes back.' },
  { what: 'token_expired', code: 4003,
    why: 'The time of the token is over.',
    now: 'A client gets a token from its login service, and comes back.' },
  { what: 'replaced', code: 4004,
    why: 'The user has a newer connection.',
    now: 'A client does not come back by itself: the two would throw each other out for ever.' },
  { what: 'disconnected', code: 4005, words: 'disconnected by an operator',
    why: 'An operator ended the connection.',
    now: 'A client does not come back by itself.' },
  { what: 'session_revoked', code: 4005, words: 'session revoked',
    why: 'The User Service took the session away.',
    now: 'A client does not come back by itself: the user signs in anew.' },
  { what: 'rate_exceeded', code: 4006,
    why: 'Too many requests were refused.',
    now: 'A client comes back with backoff, and asks less.' },
];
const SERVICES = [
  { what: 'duplicate', head: 'twice', title: 'The same message comes twice', act: duplicate },
  { what: 'pause', head: 'pause', title: 'The services pause for 5 seconds', act: pause },
  { what: 'expiry', head: 'token', act: () => expire(false),
    title: 'The token expires in 6 seconds, and is refreshed in time' },
  { what: 'expiry', head: '4003', act: () => expire(true),
    title: 'The token expires in 6 seconds, and nobody refreshes it' },
];
let rehearsed = null, letExpire = false, isReported = false;

/* The gateway does it to the connection of this id, which it has told nobody else. */
async function rehearse({ what, act }) {
  $('menu').hidePopover();
  if (what === 'duplicate' && !current?.messages.length) {
    return tell('Open a conversation that has a message first.');
  }
  rehearsed = what;
  try {
    const headers = { 'X-Gateway-Connection': connectionId };
    const answer = await fetch(`/rehearse?what=${what}`, { method: 'POST', headers });
    if (!answer.ok) throw await answer.json();
    await act?.();
  } catch ({ message }) { tell(message); }
}

function pause() {
  tell('For 5 seconds every request is answered SERVICE_UNAVAILABLE. What you write waits, and is sent again '
    + 'with the same client_message_id.');
}

async function duplicate() { await historyOf(current, '', 1); }

async function expire(forReal) {
  letExpire = forReal;
  tell(forReal ? 'The token expires in 6 seconds, and the page lets it.'
    : 'The token expires in 6 seconds; the page refreshes it after half of that.');
  await refreshToken();
}

/* After a close: what it means, and what is done now. */
function report(code, told, after) {
  [rehearsed, letExpire, isReported] = [null, false, true];
  const words = told?.reason ?? '';
  const known = CLOSES.find(close => close.code === code && (close.words ?? words) === words);
  if (!known && !words) {
    return tell('The connection was lost. A client comes back with backoff and jitter; what is unread comes '
      + 'first.');
  }
  const next = after === null ? 'Nor does this page, unless you say so.'
    : `So does this page, in ${(after / 1000).toFixed(1)} s.`;
  tell(`Closed with ${code}, “${words}”. ${known?.why ?? ''} ${known?.now ?? ''} ${next}`);
}

function menuButton(entry) {
  const [head, text] = entry.code ? [String(entry.code), entry.why] : [entry.head, entry.title];
  const button = make('button', { type: 'button', onclick: () => rehearse(entry) },
    make('code', { textContent: head }), make('span', { textContent: text }));
  button.dataset.what = entry.what;
  return make('li', {}, button);
}

/* ── Controls ────────────────────────────────────────────────────────────────────────────────────── */

function signIn(text) {
  token = text;
  sessionStorage.setItem('token', token);
  [failures, refusals] = [0, 0];
  $('refusal').textContent = '';
  connect();
}

function leave() {
  token = me = current = null;
  sessionStorage.removeItem('token');
  hangUp();
  tell('');
  show('out', 'Not connected');
  conversations = new Map();
  toAcknowledge.clear();
  copiesToCome.clear();
  document.body.dataset.view = 'list';
  for (const id of [...INSIDE, 'who', 'history', 'compose']) $(id).hidden = true;
  $('door').hidden = $('nobody').hidden = false;
}

function submit() {
  const content = $('text').value.trim();
  if (!content) return;
  remember('');
  $('text').value = '';
  write(current, content);
}

function remember(text) {
  current.typed = text;
  const typed = [...conversations.values()].map(one => [one.key, one.typed]);
  keep('typed', Object.fromEntries(typed));
}

$('login').onsubmit = event => {
  event.preventDefault();
  signIn($('token').value.trim());
  $('token').value = '';
};
$('new').onsubmit = event => {
  event.preventDefault();
  const text = $('whom').value.trim();
  const where = text.startsWith('#') ? conversation('group', text.slice(1))
    : conversation('user', text);
  $('whom').value = '';
  choose(where);
};
$('compose').onsubmit = event => { event.preventDefault(); submit(); };
$('text').onkeydown = event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
};
$('text').oninput = () => remember($('text').value);
$('history').onscroll = () => {
  staysAtEnd = atEnd();
  if ($('history').scrollTop < 100) loadOlder(current);
  if (staysAtEnd) { $('to-end').hidden = true; markShown(); }
};
new ResizeObserver(() => { if (staysAtEnd) $('history').scrollTop = $('history').scrollHeight; })
  .observe($('history'));
$('to-end').onclick = () => { draw(true); markShown(); $('text').focus(); };
$('back').onclick = () => {
  document.body.dataset.view = 'list';
  $('conversations').querySelector('[aria-current=true]')?.focus();
};
$('leave').onclick = leave;
$('return').onclick = () => { tell(''); connect(); };
$('dismiss').onclick = () => tell('');
$('clear').onclick = () => $('wire').replaceChildren();
$('show-frames').onclick = () => {
  const shown = $('all').classList.toggle('with-frames');
  $('frames').hidden = !shown;
  $('show-frames').ariaExpanded = String(shown);
  $('wire').scrollTop = $('wire').scrollHeight;
};
$('rehearse-services').append(...SERVICES.map(menuButton));
$('rehearse-closes').append(...CLOSES.map(menuButton));
for (const [id, sample] of Object.entries(setup.users)) {
  const face = make('span', { ariaHidden: 'true' });
  paint(face, { kind: 'user', id });
  const button = make('button', { type: 'button', onclick: () => signIn(sample) }, face, id);
  $('samples').append(make('li', {}, button));
}
$('door-hint').hidden = !$('samples').children.length;
if (token) connect();
