/* ── Messages ────────────────────────────────────────────────────────────────────────────────────── */

const isOwn = message => message.from_user_id === me;
const of = message => message.group_id ? conversation('group', message.group_id)
  : conversation('user', isOwn(message) ? message.to_user_id : message.from_user_id);

function pushed(message, line) {
  const where = of(message);
  if (copiesToCome.delete(message.id)) return;
  if (seen.has(message.id)) {
    // Perhaps the acknowledgement was lost: so once more, unless it is still to be read.
    const isRead = !isOwn(message) && !where.unread.has(message.id);
    if (isRead) acknowledge(message.id);
    const done = `dropped the second one by its id${isRead ? ', and acknowledged it once more' : ''}`;
    annotate(line, `This id has come before: the page has ${done}.`);
    if (rehearsed === 'duplicate') {
      tell(`The same message came twice. The page has ${done}: see the frames.`);
    }
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
  const { kind, id } = where;
  return kind === 'group' ? ask('get_group_history', { group_id: id, before_id, limit })
    : ask('get_history', { user_id: id, before_id, limit });
}

/* The last line for the list; the message counts as neither seen nor read. */
async function loadPreview(where) {
  if (where.preview) return;
  const newest = await historyOf(where, '', 1).catch(() => null);
  where.preview ??= newest?.messages[0] ?? null;
  draw();
}

/* Whether the same request may succeed later. */
const isPassing = ({ code }) => PASSING.includes(code);
const PASSING = ['SERVICE_UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RATE_LIMITED', 'INTERNAL'];

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
  } catch (failure) {
    if (isPassing(failure)) await wait(1000);
    else if (failure.code !== 'LOST') ids.forEach(id => toAcknowledge.delete(id));
  }
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
  const { kind, id } = where;
  drafts.push({ client_message_id, kind, to: id, content, at: Date.now() / 1000 });
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
    const { client_message_id, content, kind, to } = draft;
    const [type, where] = kind === 'group' ? ['send_group_message', { group_id: to }]
      : ['send_message', { to_user_id: to }];
    try {
      const sent = await ask(type, { ...where, content, client_message_id });
      if (tries) tell('The services answer again: what waited is sent, and once.');
      tries = 0;
      settle({ ...sent, ...where, from_user_id: me, content });
    } catch (failure) {
      if (isPassing(failure)) await wait(jittered(500 * 2 ** tries++, 8000));
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
