// An outbox of files: one for each session, which stays until the session has its result.
//
// What is written here survives a crash at any point: a file is complete before it has its name.
// Knows files; nothing of the broker.

import { mkdirSync, openSync, writeSync, fsyncSync, closeSync, renameSync } from "node:fs";
import { existsSync, readFileSync, readdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import * as progress from "./progress.mjs";

export class Outbox {
  constructor(folder) {
    this.folder = folder;
    mkdirSync(folder, { recursive: true });
  }

  /** Keeps a batch; recording the same session again changes nothing. */
  record(batch) {
    const path = this.#path(batch.client_session_uuid, "pending");
    if (!existsSync(path) && !this.result(batch.client_session_uuid)) this.#write(path, batch);
  }

  /** The batches without a result, oldest first. */
  pending() {
    return readdirSync(this.folder)
      .filter((name) => name.endsWith(".pending.json"))
      .map((name) => JSON.parse(readFileSync(join(this.folder, name), "utf8")))
      .filter((batch) => !this.result(batch.client_session_uuid))
      .sort((one, other) => Date.parse(one.attempts[0].answered_at) - Date.parse(other.attempts[0].answered_at));
  }

  /** What became of a session; null while nobody knows. */
  result(uuid) {
    const path = this.#path(uuid, "result");
    return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : null;
  }

  /** The first result stands, but an ingest beats a rejection. The times that it tells are kept too. */
  settle(result) {
    const path = this.#path(result.client_session_uuid, "pending");
    if (existsSync(path)) {
      const state = this.#progress();
      progress.tell(state, result, JSON.parse(readFileSync(path, "utf8")));
      this.#write(this.#file(), state);
    }
    const known = this.result(result.client_session_uuid);
    if (known && !(known.status === "rejected" && result.status !== "rejected")) return;
    this.#write(this.#path(result.client_session_uuid, "result"), result);
  }

  /** The questions that are due at a time, the most forgotten first. Needs no network. */
  due(at = Date.now()) {
    return progress.due(this.#progress(), this.pending(), at);
  }

  // What is needed to keep the progress current.

  users() {
    return Object.keys(this.#progress());
  }

  cursor(user) {
    return this.#progress()[user]?.cursor ?? null;
  }

  lacks(mark) {
    return progress.lacks(this.#progress(), mark);
  }

  /** Applies a page. An erasure also reaches the answers that this device keeps. */
  apply(page) {
    const state = this.#progress();
    const applied = progress.apply(state, page);
    if (applied && page.erased_at) this.#forget(page);
    if (applied) this.#write(this.#file(), state);
    return applied;
  }

  #forget({ user_id, erased_at }) {
    for (const name of readdirSync(this.folder).filter((each) => each.endsWith(".pending.json"))) {
      const path = join(this.folder, name);
      const batch = JSON.parse(readFileSync(path, "utf8"));
      const result = this.result(batch.client_session_uuid);
      if (!result || (result.progress?.user_id ?? user_id) !== user_id) continue;
      const attempts = batch.attempts.filter((attempt) => Date.parse(attempt.answered_at) >= Date.parse(erased_at));
      if (attempts.length) this.#write(path, { ...batch, attempts });
      else unlinkSync(path);
    }
  }

  #progress() {
    return existsSync(this.#file()) ? JSON.parse(readFileSync(this.#file(), "utf8")) : {};
  }

  #file() {
    return join(this.folder, "progress.json");
  }

  #path(uuid, kind) {
    return join(this.folder, `${uuid}.${kind}.json`);
  }

  #write(path, value) {
    const file = openSync(`${path}.new`, "w");
    writeSync(file, JSON.stringify(value));
    fsyncSync(file);
    closeSync(file);
    renameSync(`${path}.new`, path);
  }
}
