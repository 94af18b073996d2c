// The relay: publishes the outbox and receives the results, whenever there is a network.
//
// All of its state is in the outbox, so the tab may close at any point. Sessions without a result are
// published again with the next connection, and the worker detects duplicates by their uuid.

import { connect } from "./mqtt.js";
import { Asking } from "./progress.js";

const SHORTEST = 500, LONGEST = 60_000; // milliseconds between attempts
const RESULT_TIMEOUT = 15 * 60_000; // publish again if there is no result after this time

export class Relay {
  #outbox;
  #tell;
  #asking = null;
  #refused = false; // whether this viewer may have no progress
  #woken = false;
  #resume = () => {};

  /** `tell` is called with a word on the connection, and after each change of the outbox. */
  constructor(outbox, tell) {
    this.#outbox = outbox;
    this.#tell = tell;
    window.addEventListener("online", () => this.wake());
  }

  /** Looks at the outbox, or tries the broker again, now. */
  wake() {
    this.#woken = true;
    this.#resume();
  }

  async run() {
    for (let wait = SHORTEST; ; wait = Math.min(wait * 2, LONGEST)) {
      const login = await this.#outbox.login();
      if (!login) this.#tell("not logged in");
      else if (!navigator.onLine) this.#tell("offline");
      else {
        try {
          const began = Date.now();
          await this.#session(login);
          if (Date.now() - began > LONGEST) wait = SHORTEST;
        } catch (error) {
          this.#tell(`offline: ${error.message}`);
        }
      }
      if (await this.#pause(wait * (0.5 + Math.random() / 2))) wait = SHORTEST;
    }
  }

  /** One connection, from opening it to its end. */
  async #session({ url, vhost, viewer, password }) {
    const client = await connect({
      url,
      clientId: viewer,
      username: `${vhost}:${viewer}`,
      password,
      onMessage: (body) => this.#take(body),
    });
    try {
      // Before the first batch, because a result without a subscription is lost.
      await client.subscribe(`result/${viewer}`);
      await this.#listen(client, viewer);
      this.#tell("online");
      const published = new Set();
      let open = true;
      const lost = client.closed.then(() => (open = false));
      window.addEventListener("offline", () => client.close(), { once: true });
      while (open) {
        for (const { uuid, batch, sentAt } of await this.#outbox.unsettled()) {
          if (published.has(uuid) && Date.now() - sentAt < RESULT_TIMEOUT) continue;
          await client.publish(`attempts/v1/${viewer}`, JSON.stringify(batch));
          published.add(uuid);
          await this.#outbox.sent(uuid);
          this.#tell("online");
        }
        await Promise.race([lost, this.#pause(LONGEST)]);
      }
      this.#tell("offline");
    } finally {
      this.#asking?.end();
      client.close();
    }
  }

  /** Begins to keep the progress current. A viewer that was not upgraded goes on without. */
  async #listen(client, viewer) {
    this.#asking = null;
    if (this.#refused) return;
    this.#refused = true; // a broker may close the connection instead of refusing
    try {
      await client.subscribe(`progress/${viewer}`, 0);
    } catch (error) {
      console.warn("this viewer gets no progress: ask the operator to run `study-ingest viewer upgrade`");
      throw error;
    }
    this.#refused = false;
    this.#asking = new Asking(this.#outbox, (request) => client.mention(`progress/v1/${viewer}`, request));
    await this.#asking.begin();
  }

  async #take(body) {
    let message;
    try {
      message = JSON.parse(body);
    } catch {
      return; // not readable; what it was about is sent or asked for again after a while
    }
    if (message.client_session_uuid) {
      await this.#outbox.settle(message);
      await this.#asking?.result(message);
    } else await this.#asking?.take(message);
    this.#tell("online");
  }

  /** Waits so long, or until somebody calls `wake`; true then. */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(over);
        resolve(this.#woken);
        this.#woken = false;
      };
      const over = setTimeout(end, this.#woken ? 0 : milliseconds);
      this.#resume = end;
    });
  }
}
