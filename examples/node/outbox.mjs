// An outbox of files: one for each session, which stays until the session has its result.
//
// What is written here survives a crash at any point: a file is complete before it has its name.
// Knows files; nothing of the broker.

import { mkdirSync, openSync, writeSync, fsyncSync, closeSync, renameSync } from "node:fs";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

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

  /** The first result stands, but an ingest beats a rejection. */
  settle(result) {
    const known = this.result(result.client_session_uuid);
    if (known && !(known.status === "rejected" && result.status !== "rejected")) return;
    this.#write(this.#path(result.client_session_uuid, "result"), result);
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
