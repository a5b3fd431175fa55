/* ── What is shown ───────────────────────────────────────────────────────────────────────────────── */

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/* Puts one element for each item into `parent`, and keeps those that are there: so focus, scrolling and
   what a screen reader has read stay. */
function reconcile(parent, items, create, update) {
  const old = new Map([...parent.children].map(child => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const child = old.get(item.key) ?? create(item);
    old.delete(item.key);
    child.dataset.key = item.key;
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  for (const child of old.values()) child.remove();
}

function setText(element, text) { if (element.textContent !== text) element.textContent = text; }

function show(state, text) {
  document.body.dataset.state = state;
  // One takes the place of the other, and its focus.
  const isAway = ['waiting', 'ended'].includes(state);
  const hasFocus = [$('return'), $('rehearse')].includes(document.activeElement);
  $('return').hidden = !isAway;
  $('rehearse').hidden = isAway || !me;
  if (hasFocus) $(isAway ? 'return' : 'rehearse').focus();
  setText($('state-text'), text);
  draw();
}

function tell(text) {
  setText($('news-text'), text);
  setText($('spoken-news'), text);
  $('news').hidden = !text;
}

const INSIDE = ['all', 'show-frames', 'leave'];   // what there is once somebody is let in

function enter() {
  $('door').hidden = true;
  for (const id of INSIDE) $(id).hidden = false;
  draw();
}

/* Each name has a colour of its own, on which white can be read. */
function paint(element, { kind, id }) {
  const hue = [...id].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
  element.className = `avatar ${kind}`;
  element.style.background = `hsl(${hue} 50% 33%)`;
  setText(element, kind === 'group' ? '#' : [...id][0]);
}

const MINUTE = { hour: '2-digit', minute: '2-digit' };
const DAY = { weekday: 'long', day: 'numeric', month: 'long' };
const clock = seconds => new Date(seconds * 1000).toLocaleTimeString([], MINUTE);
const day = seconds => new Date(seconds * 1000).toLocaleDateString([], DAY);
const presenceOf = user => online.get(user) ? 'online' : 'offline';
const isAtEnd = box => box.scrollHeight - box.scrollTop - box.clientHeight < 40;
const atEnd = () => isAtEnd($('history'));

/* Whoever looks at the newest message goes on to do so, whatever comes, and however large the screen is. */
let staysAtEnd = true;

/* Draws all that may have changed. `toEnd`: and goes to the newest message. */
function draw(toEnd = false) {
  drawList();
  if (!current) return;
  const box = $('history'), fromEnd = box.scrollHeight - box.scrollTop;
  staysAtEnd ||= toEnd;
  const first = $('messages').firstChild?.nextSibling?.dataset.key;
  drawMessages();
  const isLonger = first && first !== $('messages').firstChild?.nextSibling?.dataset.key;
  if (staysAtEnd) box.scrollTop = box.scrollHeight;
  else if (isLonger) box.scrollTop = box.scrollHeight - fromEnd;   // older ones came above
  $('to-end').hidden = staysAtEnd || !current.unread.size;
}

function drawList() {
  const latest = where => where.preview?.timestamp ?? 0;
  const sorted = [...conversations.values()].sort((a, b) => latest(b) - latest(a) || a.id.localeCompare(b.id));
  const unread = sorted.reduce((sum, where) => sum + where.unread.size, 0);
  document.title = `${unread ? `(${unread}) ` : ''}${me ? `${me} · ` : ''}ws-gateway chat`;
  reconcile($('conversations'), sorted, createEntry, updateEntry);
}

function createEntry(where) {
  const part = className => make('span', { className });
  const entry = make('span', { className: 'entry' },
    make('span', {}, part('dot'), make('b', { textContent: where.id }), part('spoken'), part('time')),
    make('span', {}, part('last'), part('unread'), part('spoken count')));
  const face = make('span', { ariaHidden: 'true' });
  paint(face, where);
  const button = make('button', { type: 'button', onclick: () => choose(where) }, face, entry);
  return make('li', {}, button);
}

function author(message) {
  if (isOwn(message)) return 'You: ';
  return message.group_id ? `${message.from_user_id}: ` : '';
}

function updateEntry(item, where) {
  const part = name => item.querySelector(`.${name}`);
  const last = where.preview, count = where.unread.size;
  item.firstChild.ariaCurrent = String(where === current);
  part('dot').hidden = where.kind === 'group';
  part('dot').classList.toggle('online', Boolean(online.get(where.id)));
  setText(part('spoken'), where.kind === 'group' ? 'group' : presenceOf(where.id));
  setText(part('time'), last ? clock(last.timestamp) : '');
  setText(part('last'), last ? `${author(last)}${last.content}` : 'No messages yet');
  part('unread').hidden = !count;
  setText(part('unread'), String(count));
  setText(part('count'), count ? 'unread' : '');
}

function drawMessages() {
  const members = () => (setup.groups[current.id] ?? []).join(', ') || 'group';
  const about = current.kind === 'user' ? presenceOf(current.id) : members();
  setText($('about'), connectionId ? about : 'not connected');
  const items = [];
  let before = null;
  for (const message of [...current.messages.map(keyed), ...waitingFor(current)]) {
    const date = day(message.timestamp);
    const isNewDay = !before || day(before.timestamp) !== date;
    if (isNewDay) items.push({ key: `day ${date}`, date });
    const isFirst = isNewDay || before.from_user_id !== message.from_user_id
      || message.timestamp - before.timestamp > 300;
    items.push({ ...message, isFirst });
    before = message;
  }
  reconcile($('messages'), items, createMessage, updateMessage);
}

/* A message keeps its element when its draft is committed. */
function keyed(message) {
  return { ...message, key: (isOwn(message) && message.client_message_id) || message.id };
}

function waitingFor({ kind, id }) {
  const own = drafts.filter(draft => draft.kind === kind && draft.to === id);
  return own.map(draft => ({
    draft, key: draft.client_message_id, from_user_id: me, content: draft.content, timestamp: draft.at,
  }));
}

/* What is drawn beside a message of ours, and what is read out. */
function markOf({ draft, from_user_id }) {
  if (from_user_id !== me) return ['', ` from ${from_user_id}`];
  if (draft?.failure) return [' ✗', ' not sent'];
  return draft ? [' ◷', ' waiting'] : [' ✓', ' sent'];
}

function createMessage({ date, content, from_user_id }) {
  if (date) return make('li', { textContent: date });
  const meta = make('span', { className: 'meta' }, make('span'), make('span', { ariaHidden: 'true' }),
    make('span', { className: 'spoken' }));
  return make('li', {},
    make('div', { className: 'from', textContent: from_user_id }),
    make('div', { className: 'bubble' }, make('span', { textContent: content }), meta),
    make('div', { className: 'failure', hidden: true }));
}

function updateMessage(item, message) {
  if (message.date) return void (item.className = 'day');
  const { draft, isFirst } = message, own = isOwn(message);
  item.className = [own && 'own', isFirst && 'first', draft && 'waiting'].filter(Boolean).join(' ');
  const [from, bubble, failure] = item.children, [at, mark, spoken] = bubble.lastChild.children;
  from.hidden = own || !isFirst || current.kind === 'user';
  setText(at, clock(message.timestamp));
  const [shown, read] = markOf(message);
  setText(mark, shown);
  setText(spoken, read);
  failure.hidden = !draft?.failure;
  if (draft?.failure && !failure.firstChild) {
    const onclick = () => discard(draft);
    const button = make('button', { type: 'button', textContent: 'Discard', onclick });
    failure.append(`Not sent: ${draft.failure} `, button);
  }
}

function discard(draft) {
  drafts = drafts.filter(other => other !== draft);
  keep('drafts', drafts);
  draw();
}

function choose(where) {
  current = where;
  document.body.dataset.view = 'chat';
  $('nobody').hidden = true;
  for (const id of ['who', 'history', 'compose']) $(id).hidden = false;
  setText($('title'), where.kind === 'group' ? `#${where.id}` : where.id);
  $('history').ariaLabel = `Messages with ${where.id}`;
  paint($('face'), where);
  $('text').value = where.typed;
  $('messages').replaceChildren();
  draw(true);
  markShown();
  loadNewest(where);
  $('text').focus();
}

/* ── The frames ──────────────────────────────────────────────────────────────────────────────────── */

function wire(direction, text) {
  const spoken = make('i', { className: 'spoken', textContent: direction });
  const head = make('b', {}, direction === 'sent' ? '↑ ' : '↓ ', spoken, JSON.parse(text).type);
  return log(make('li', { className: direction }, head, make('span', { textContent: text })));
}
function note(text) { return log(make('li', { className: 'note', textContent: text })); }
function annotate(line, text) { line.append(make('div', { className: 'note', textContent: text })); }

function log(line) {
  const lines = $('wire'), wasAtEnd = isAtEnd(lines);
  lines.append(line);
  if (lines.children.length > MAX_FRAMES) lines.firstChild.remove();
  if (wasAtEnd) lines.scrollTop = lines.scrollHeight;
  return line;
}
