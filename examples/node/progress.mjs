// The learner's progress on this device, and when to ask for it: docs/progress.md is the protocol.
//
// The first part is pure. A state has an entry for each user, by the user's number as text:
// { cursor, epoch, version, decay, questions: { id: question }, told: { pub_id: time } }.

const HOUR = 3_600_000, DAY = 24 * HOUR;

/** Applies a page; returns whether it was for this device's cursor, and changes nothing otherwise. */
export function apply(state, page) {
  const known = state[page.user_id];
  if ((page.since ?? null) !== (known?.cursor ?? null)) return false;
  const fresh = page.starts_over ? {} : known;
  const questions = { ...fresh?.questions };
  for (const question of page.questions ?? []) questions[question.question_id] = question;
  for (const id of page.forget ?? []) delete questions[id];
  const told = Object.fromEntries(Object.entries(fresh?.told ?? {}).filter(([, time]) =>
    time.version > page.version && time.epoch === page.epoch));
  const { cursor, epoch, version, decay } = page;
  state[page.user_id] = { cursor, epoch, version, decay, questions, told };
  return true;
}

/** Whether a mark, from a nudge or a result, says that there is something to ask for. */
export function lacks(state, { user_id, epoch, version }) {
  const known = state[user_id];
  return !known?.cursor || known.epoch !== epoch || known.version < version;
}

/** Keeps the times of a result, unless the pages are newer. */
export function tell(state, result, batch) {
  const mark = result.progress;
  if (!mark || !lacks(state, mark)) return;
  const known = (state[mark.user_id] ??= { cursor: null, questions: {}, told: {} });
  if (known.cursor && known.epoch !== mark.epoch) return;
  for (const { question_pub_id, due_at } of result.due ?? []) {
    const before = known.told[question_pub_id];
    if (before?.epoch === mark.epoch && before.version > mark.version) continue;
    const answered = batch.attempts.filter((attempt) => attempt.question_pub_id === question_pub_id);
    const answered_at = answered.at(-1)?.answered_at ?? result.received_at;
    known.told[question_pub_id] = { epoch: mark.epoch, version: mark.version, due_at, answered_at };
  }
}

/**
 * What is due at a time (milliseconds), the most forgotten first. `waiting` are the batches without
 * a result: their answers count too, but nobody knows whether they were right, so a question comes
 * back after a day, which is the shortest interval.
 */
export function due(state, waiting, at) {
  const answers = new Map();
  for (const { attempts } of waiting) {
    for (const { question_pub_id: id, selected_choice, is_unsure, answered_at } of attempts) {
      if (selected_choice === null && !is_unsure) continue;
      answers.set(id, Math.max(Date.parse(answered_at), answers.get(id) ?? 0));
    }
  }
  const found = [];
  for (const [user_id, { questions, told, decay = 0.1542 }] of Object.entries(state)) {
    const inPages = new Set();
    const add = (pub_ids, stability, last, dueAt) => {
      const times = pub_ids.filter((id) => told[id]).map((id) => told[id]);
      if (times.length) {
        const newest = times.reduce((one, other) => (other.version > one.version ? other : one));
        [last, dueAt] = [Date.parse(newest.answered_at), Date.parse(newest.due_at)];
        stability = Math.max((dueAt - last) / DAY, 1);
      }
      const answered = Math.max(0, ...pub_ids.map((id) => answers.get(id) ?? 0));
      pub_ids.forEach((id) => answers.delete(id));
      const isWaiting = answered > last;
      if (isWaiting) [last, dueAt] = [answered, answered + DAY];
      if (dueAt - 12 * HOUR > at) return;
      const recall = recallOf(stability, decay, last, at);
      found.push({ user_id, pub_ids, due_at: new Date(dueAt).toISOString(), recall, waiting: isWaiting });
    };
    for (const { pub_ids, stability, last_answered_at, due_at } of Object.values(questions)) {
      pub_ids.forEach((id) => inPages.add(id));
      if (pub_ids.length) add(pub_ids, stability, Date.parse(last_answered_at), Date.parse(due_at));
    }
    for (const id of Object.keys(told)) if (!inPages.has(id)) add([id], 1, 0, 0);
  }
  for (const [id, answered] of answers) {
    if (answered + 12 * HOUR > at) continue;
    const due_at = new Date(answered + DAY).toISOString();
    found.push({ user_id: null, pub_ids: [id], due_at, recall: null, waiting: true });
  }
  return found.sort((one, other) => (one.recall ?? 2) - (other.recall ?? 2)
    || Date.parse(one.due_at) - Date.parse(other.due_at));
}

/** The forgetting curve of FSRS-6: the predicted probability that a question is still known. */
function recallOf(stability, decay, last, at) {
  const days = Math.max(0, Math.floor((at - last + 12 * HOUR) / DAY));
  return (1 + (0.9 ** (-1 / decay) - 1) * days / stability) ** -decay;
}

const PATIENCE = 10_000, LONGEST = 60_000, INTERVAL = 15 * 60_000; // milliseconds
const NAMELESS = ""; // the only user of a viewer that does not know it yet

/** Asks when there is reason to, for as long as one connection lasts; one request for each user. */
export class Asking {
  #store;
  #send;
  #asked = new Map(); // user -> { timer, underWay, again }
  #behind = new Set();
  #resolve = () => {};
  #open = true;
  /** Resolves as soon as everything is here. */
  current = new Promise((resolve) => (this.#resolve = resolve));

  /** `store` has users(), cursor(user), apply(page) and lacks(mark); `send` publishes a request. */
  constructor(store, send) {
    this.#store = store;
    this.#send = send;
  }

  async begin() {
    const users = await this.#store.users();
    for (const user of users.length ? users : [NAMELESS]) this.ask(user);
  }

  end() {
    this.#open = false;
    for (const { timer } of this.#asked.values()) clearTimeout(timer);
  }

  ask(user) {
    this.#behind.add(user);
    const asked = this.#asked.get(user);
    if (asked?.underWay) asked.again = true;
    else this.#request(user, 0);
  }

  /** A message that is no result. */
  async take(message) {
    if (message.cursor !== undefined) {
      if (await this.#store.apply(message)) this.#applied(message);
    } else if (message.reason !== undefined) {
      this.#finish(message.user_id ?? NAMELESS);
      console.warn(`no progress: ${message.detail}`);
    } else if (message.user_id !== undefined && (await this.#store.lacks(message))) this.ask(message.user_id);
  }

  /** After a result was stored. */
  async result({ progress, status }) {
    if (progress) {
      if (await this.#store.lacks(progress)) this.ask(progress.user_id);
    } else if (status !== "rejected") await this.begin();
  }

  async #request(user, tries) {
    clearTimeout(this.#asked.get(user)?.timer);
    const timer = setTimeout(() => this.#request(user, tries + 1), Math.min(PATIENCE * 2 ** tries, LONGEST));
    this.#asked.set(user, { timer, underWay: true, again: false });
    const cursor = user === NAMELESS ? null : await this.#store.cursor(user);
    if (this.#open) this.#send(JSON.stringify(user === NAMELESS ? { cursor } : { user_id: user, cursor }));
  }

  #applied({ user_id: user, next }) {
    this.#behind.add(user);
    this.#finish(NAMELESS);
    const again = this.#asked.get(user)?.again;
    clearTimeout(this.#asked.get(user)?.timer);
    if (!this.#open) return;
    if (next === "page") {
      const timer = setTimeout(() => this.#request(user, 1), PATIENCE);
      this.#asked.set(user, { timer, underWay: true, again });
    } else if (next === "nothing" && !again) {
      this.#finish(user);
      const timer = setTimeout(() => this.ask(user), INTERVAL);
      this.#asked.set(user, { timer, underWay: false, again: false });
    } else this.#request(user, 0);
  }

  #finish(user) {
    clearTimeout(this.#asked.get(user)?.timer);
    this.#asked.delete(user);
    this.#behind.delete(user);
    if (!this.#behind.size) this.#resolve();
  }
}
