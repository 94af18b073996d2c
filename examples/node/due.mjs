// Prints what is due, one question a line, the most forgotten first. Needs no network.
//
//   node due.mjs [2026-03-01T09:00:00+01:00]

import { Outbox } from "./outbox.mjs";

const at = process.argv[2] ? Date.parse(process.argv[2]) : Date.now();
if (Number.isNaN(at)) {
  console.error(`${process.argv[2]} is not a time: write it as in RFC 3339`);
  process.exit(2);
}
for (const question of new Outbox(process.env.STUDY_OUTBOX ?? "outbox").due(at)) {
  console.log(JSON.stringify(question));
}
