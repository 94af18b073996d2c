// The outbox: sessions in IndexedDB, from their last answer until their result, and longer.
//
// After `record` has returned, a session survives a closed tab and a dead battery.

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

  /** Keeps a result: the first stands, but an ingest beats a rejection. */
  async settle(result) {
    await this.#change("sessions", async (store) => {
      const session = await done(store.get(result.client_session_uuid));
      if (!session) return;
      const rejectedBefore = session.result?.status === "rejected" && result.status !== "rejected";
      if (!session.result || rejectedBefore) store.put({ ...session, result });
    });
  }

  /** The login that was saved, or undefined. */
  login() {
    return done(this.#database.transaction("settings").objectStore("settings").get("login"));
  }

  async saveLogin(login) {
    await this.#change("settings", async (store) => store.put(login, "login"));
  }

  /** One transaction; returns when it is on disk. */
  async #change(name, work) {
    const transaction = this.#database.transaction(name, "readwrite", { durability: "strict" });
    const finished = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    await work(transaction.objectStore(name));
    await finished;
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
