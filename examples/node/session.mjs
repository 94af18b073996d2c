// Records one session, publishes everything in the outbox, and waits for its result.
//
//   STUDY_VIEWER=... STUDY_PASSWORD=... STUDY_AMQP_URL=amqp://localhost:5672/ \
//       node session.mjs question-1=2 question-2=unsure

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import amqp from "amqplib";
import { Outbox } from "./outbox.mjs";
import { Asking } from "./progress.mjs";

const { STUDY_VIEWER: viewer, STUDY_PASSWORD: password, STUDY_AMQP_URL } = process.env;
const outbox = new Outbox(process.env.STUDY_OUTBOX ?? "outbox");
const session = process.env.STUDY_SESSION ?? randomUUID();

const url = new URL(STUDY_AMQP_URL);
url.username = viewer;
url.password = password;

function attempt(answer) {
  const at = answer.lastIndexOf("=");
  const choice = answer.slice(at + 1);
  return {
    question_pub_id: answer.slice(0, at),
    selected_choice: choice === "unsure" ? null : Number(choice),
    is_unsure: choice === "unsure",
    answered_at: localNow(),
  };
}

/** The time now with this device's offset from UTC, in RFC 3339. */
function localNow(now = new Date()) {
  const minutes = -now.getTimezoneOffset();
  const local = new Date(now.getTime() + minutes * 60_000).toISOString().slice(0, -1);
  const two = (number) => String(Math.floor(Math.abs(number))).padStart(2, "0");
  return `${local}${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
}

/** Publishes one batch, and returns after the broker has confirmed it without returning it. */
async function publish(channel, batch) {
  const messageId = randomUUID(); // new for each publish; the batch has its own uuid
  let returned = false;
  const note = (message) => {
    returned ||= message.properties.messageId === messageId;
  };
  channel.on("return", note);
  try {
    channel.publish("study.ingest", `attempts.v1.${viewer}`, Buffer.from(JSON.stringify(batch)), {
      persistent: true,
      mandatory: true,
      contentType: "application/json",
      type: "study.attempt_batch.v1",
      timestamp: Math.floor(Date.now() / 1000),
      messageId,
      userId: viewer, // the broker vouches for it
      headers: { "client-session-uuid": batch.client_session_uuid },
    });
    await channel.waitForConfirms();
  } finally {
    channel.off("return", note);
  }
  if (returned) throw new Error("no queue takes batches: has the operator set up the broker?");
}

/** Asks for the learner's progress; null if this viewer was made before there was any. */
async function keepCurrent(connection) {
  const channel = await connection.createChannel();
  const gone = new Promise((_, reject) => channel.on("error", reject));
  gone.catch((error) => console.error(`no progress: ${error.message}`));
  const asking = new Asking(outbox, (request) =>
    channel.publish("study.ingest", `progress.v1.${viewer}`, Buffer.from(request), {
      contentType: "application/json",
      type: "study.progress_request.v1",
      messageId: randomUUID(),
      userId: viewer,
    }));
  gone.catch(() => asking.end());
  try {
    await Promise.race([gone, channel.consume(`study.progress.${viewer}`, async (message) => {
      if (message) await asking.take(JSON.parse(message.content.toString()));
    }, { noAck: true })]);
  } catch {
    return null;
  }
  await asking.begin();
  return asking;
}

/** One connection: results first, then everything that waits. Ends when the session has a result. */
async function relay() {
  const connection = await amqp.connect(url.href, { heartbeat: 10 });
  const lost = new Promise((_, reject) => {
    connection.on("error", reject);
    connection.on("close", () => reject(new Error("the connection was closed")));
  });
  lost.catch(() => {});
  const results = await connection.createChannel();
  let asking = null;
  try {
    await results.prefetch(20);
    const settled = new Promise((resolve) => {
      results.consume(`study.results.${viewer}`, (message) => {
        if (message === null) return connection.emit("error", new Error("the queue is gone"));
        if (/^study\.ingest_result\.v1(\.\d+)?$/.test(message.properties.type)) {
          const result = JSON.parse(message.content.toString());
          outbox.settle(result);
          asking?.result(result);
        }
        results.ack(message); // only now is the result safe
        if (outbox.result(session)) resolve();
      });
    });
    asking = await keepCurrent(connection);
    const channel = await connection.createConfirmChannel();
    for (const batch of outbox.pending()) await publish(channel, batch);
    await Promise.race([settled, lost]);
    // A result can wait for nobody: whoever wants the progress as well asks again next time.
    if (asking) await Promise.race([asking.current, lost, sleep(5_000)]);
  } finally {
    asking?.end();
    await results.close().catch(() => {}); // first, or the close would overtake the last ack
    await connection.close().catch(() => {});
  }
}

outbox.record({ client_session_uuid: session, attempts: process.argv.slice(2).map(attempt) });
for (let wait = 500; !outbox.result(session); wait = Math.min(wait * 2, 60_000)) {
  try {
    await relay();
  } catch (error) {
    console.error(`not yet: ${error.message}`);
    await sleep(wait * (0.5 + Math.random() / 2));
  }
}
console.log(JSON.stringify(outbox.result(session)));
