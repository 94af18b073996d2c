// The outbox: sessions in IndexedDB, from their last answer until their result, and longer.
//
// After `record` has returned, a session survives a closed tab and a dead battery.

import * as progress from "./progress.js";

const NAME = "study-viewer";

/** Opens the outbox; there is one for each origin. */
export async function openOutbox() {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("sessions", { keyPath: "uuid" });
    opening.result.createObjectStore("settings");
  };
  return new Outbox(await done(opening));
}

class Outbox {
  #database;

  constructor(database) {
    this.#database = database;
  }

  /** Keeps a finished session; the same one again changes nothing. */
  async record(batch) {
    const uuid = batch.client_session_uuid;
    const session = { uuid, batch, recordedAt: Date.now(), sentAt: null, result: null };
    await this.#change("sessions", async (store) => {
      if (!(await done(store.get(uuid)))) store.put(session);
    });
  }

  /** All sessions, latest first. */
  async sessions() {
    const all = await done(this.#database.transaction("sessions").objectStore("sessions").getAll());
    return all.sort((one, other) => other.recordedAt - one.recordedAt);
  }

  /** The sessions without a result, oldest first: these have to be published (again). */
  async unsettled() {
    return (await this.sessions()).filter((session) => !session.result).reverse();
  }

  /** Notes that the broker has it. */
  async sent(uuid) {
    await this.#change("sessions", async (store) => {
      const session = await done(store.get(uuid));
      if (session) store.put({ ...session, sentAt: Date.now() });
    });
  }

  /** Keeps a result, and the times that it tells: the first stands, but an ingest beats a rejection. */
  async settle(result) {
    await this.#change(["sessions", "settings"], async (sessions, settings) => {
      const session = await done(sessions.get(result.client_session_uuid));
      if (!session) return;
      const rejectedBefore = session.result?.status === "rejected" && result.status !== "rejected";
      if (!session.result || rejectedBefore) sessions.put({ ...session, result });
      const state = (await done(settings.get("progress"))) ?? {};
      progress.tell(state, result, session.batch);
      settings.put(state, "progress");
    });
  }

  /** The questions that are due at a time, the most forgotten first. Needs no network. */
  async due(at = Date.now()) {
    return progress.due(await this.#progress(), (await this.unsettled()).map(({ batch }) => batch), at);
  }

  // What the relay needs to keep the progress current.

  async users() {
    return Object.keys(await this.#progress());
  }

  async cursor(user) {
    return (await this.#progress())[user]?.cursor ?? null;
  }

  async lacks(mark) {
    return progress.lacks(await this.#progress(), mark);
  }

  /** Applies a page. An erasure also reaches the answers that this device keeps. */
  async apply(page) {
    let applied = false;
    await this.#change(["sessions", "settings"], async (sessions, settings) => {
      const state = (await done(settings.get("progress"))) ?? {};
      applied = progress.apply(state, page);
      if (!applied) return;
      settings.put(state, "progress");
      if (!page.erased_at) return;
      for (const session of await done(sessions.getAll())) {
        const { user_id } = session.result?.progress ?? {};
        if (!session.result || (user_id ?? page.user_id) !== page.user_id) continue;
        const attempts = session.batch.attempts.filter(({ answered_at }) =>
          Date.parse(answered_at) >= Date.parse(page.erased_at));
        if (attempts.length) sessions.put({ ...session, batch: { ...session.batch, attempts } });
        else sessions.delete(session.uuid);
      }
    });
    return applied;
  }

  async #progress() {
    const store = this.#database.transaction("settings").objectStore("settings");
    return (await done(store.get("progress"))) ?? {};
  }

  /** The login that was saved, or undefined. */
  login() {
    return done(this.#database.transaction("settings").objectStore("settings").get("login"));
  }

  async saveLogin(login) {
    await this.#change("settings", async (store) => store.put(login, "login"));
  }

  /** One transaction; returns when it is on disk. */
  async #change(names, work) {
    const transaction = this.#database.transaction(names, "readwrite", { durability: "strict" });
    const finished = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    await work(...[names].flat().map((name) => transaction.objectStore(name)));
    await finished;
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
