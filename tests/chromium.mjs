// Does in a headless Chromium what its standard input says, one JavaScript function body a line,
// with `browser`, `context`, `page` and `state` in reach; answers each with one line of JSON.
//
//   node chromium.mjs CHROMIUM PROFILE_FOLDER

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [executablePath, profile] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"];
const context = await chromium.launchPersistentContext(profile, { executablePath, args });
context.setDefaultTimeout(45_000);
const state = { page: context.pages()[0], said: [] };
context.on("console", (message) => state.said.push(`${message.type()}: ${message.text()}`));
context.on("weberror", (error) => state.said.push(String(error.error())));
const AsyncFunction = (async () => {}).constructor;

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const work = new AsyncFunction("context", "page", "state", JSON.parse(line));
    answer = { done: (await work(context, state.page, state)) ?? null };
  } catch (error) {
    answer = { error: `${error}`, said: state.said };
  }
  console.log(JSON.stringify(answer));
}
await context.close();
