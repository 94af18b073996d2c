// Takes follow-up jobs: notes who wants which explanation, and which questions to review.
//
//   FOLLOWUPS_AMQP_URL=amqp://jobs:...@localhost:5672/ FOLLOWUPS_FOLDER=jobs node consumer.mjs
//
// Each job has its effect once: the effect is a file whose name is the job's message_id, so that
// both exist or neither, and the ack comes after it is on the disk. A job that can't be read is
// kept in the folder `dead`. In your application, use a transaction of your database instead.

import { createHash } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, writeSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import amqp from "amqplib";

const folder = process.env.FOLLOWUPS_FOLDER ?? "jobs";
const kinds = ["explanation.requested", "review.requested"];
for (const name of ["done", "dead"]) mkdirSync(join(folder, name), { recursive: true });

/** What each type of message asks for; the type has the version. */
const effects = {
  "study.explanation_requested.v1": (job) => ({
    explain: { user_id: whole(job.user_id), question_id: whole(job.question_id) },
  }),
  "study.review_requested.v1": (job) => ({
    review: { user_id: whole(job.user_id), questions: job.questions.map((each) => whole(each.question_id)) },
  }),
};

function whole(number) {
  if (!Number.isInteger(number)) throw new TypeError(`${number} is not a whole number`);
  return number;
}

/** Keeps a value under a name: all of it is on the disk before the file has its name. */
function keep(path, value) {
  const file = openSync(`${path}.new`, "w");
  writeSync(file, JSON.stringify(value));
  fsyncSync(file);
  closeSync(file);
  renameSync(`${path}.new`, path);
}

/** The effect of one job, once. After it returns, the job can be acked. */
function take(message) {
  const { messageId, type } = message.properties;
  // A name for a file, whatever the id contains.
  const name = createHash("sha256").update(messageId ?? message.content).digest("hex");
  const done = join(folder, "done", `${name}.json`);
  if (existsSync(done)) return console.log(`duplicate ${messageId}`);
  let effect;
  try {
    if (!Object.hasOwn(effects, type)) throw new TypeError(`unknown type ${type}`);
    effect = effects[type](JSON.parse(message.content.toString("utf8")));
  } catch (error) {
    // To be looked at by a person; the queue goes on.
    const body = message.content.toString("base64");
    keep(join(folder, "dead", `${name}.json`), { message_id: messageId, reason: String(error), body });
    return console.log(`dead ${messageId}`);
  }
  keep(done, { message_id: messageId, ...effect });
  console.log(`done ${messageId}`);
}

let connection;
let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => {
    stopping = true;
    connection?.close().catch(() => {});
  });
}

while (!stopping) {
  try {
    connection = await amqp.connect(process.env.FOLLOWUPS_AMQP_URL, { heartbeat: 10 });
    const closed = new Promise((resolve) => connection.on("close", resolve));
    connection.on("error", (error) => console.error(`lost the broker: ${error.message}`));
    const channel = await connection.createChannel();
    channel.on("error", (error) => console.error(`lost the channel: ${error.message}`));
    channel.on("close", () => connection.close().catch(() => {}));
    await channel.prefetch(20);
    for (const kind of kinds) {
      await channel.consume(`study.followups.${kind}`, (message) => {
        if (message === null) return void connection.close().catch(() => {}); // the queue is gone
        try {
          take(message);
        } catch (error) {
          // The disk is full, for example: the job stays in the queue.
          console.error(`again ${message.properties.messageId}: ${error.message}`);
          return void sleep(1000).then(() => channel.nack(message)).catch(() => {});
        }
        channel.ack(message); // if the channel is gone, the job comes back as a duplicate
      });
    }
    await closed;
  } catch (error) {
    console.error(`no connection: ${error.message}`);
  }
  if (!stopping) await sleep(1000);
}
