// The page: asks questions, keeps each finished session in the outbox, shows its result.
//
// Everything that comes from outside (questions, results) is only inserted as text.

import { openOutbox } from "./outbox.js";
import { Relay } from "./relay.js";

const $ = (selector) => document.querySelector(selector);
const outbox = await openOutbox();
const relay = new Relay(outbox, (state) => {
  $("#connection").textContent = state;
  showSessions();
  showDue();
});

// The quiz.

const questions = await (await fetch("questions.json")).json();
let attempts = [];

function offer() {
  show(element("button", { onclick: ask }, "Start a session"));
}

function ask() {
  const question = questions[attempts.length];
  const choices = question.choices.map((choice, number) =>
    element("label", {}, element("input", { type: "radio", name: "choice", value: number }), choice),
  );
  const unsure = element("input", { type: "checkbox", name: "unsure" });
  const next = element("button", { disabled: true },
    attempts.length + 1 < questions.length ? "Next" : "Finish");
  const form = element("form", {},
    element("fieldset", {},
      element("legend", {}, question.text),
      ...choices,
      element("label", {}, unsure, "I'm not sure")),
    next);
  form.onchange = () => (next.disabled = !form.choice.value && !unsure.checked);
  form.onsubmit = async (event) => {
    event.preventDefault();
    next.disabled = true;
    attempts.push({
      question_pub_id: question.pub_id,
      selected_choice: form.choice.value === "" ? null : Number(form.choice.value),
      is_unsure: unsure.checked,
      answered_at: localNow(),
    });
    if (attempts.length < questions.length) return ask();
    await outbox.record({ client_session_uuid: crypto.randomUUID(), attempts });
    attempts = [];
    offer();
    await showSessions();
    await showDue();
    relay.wake();
  };
  show(element("p", { className: "soft" }, `Question ${attempts.length + 1} of ${questions.length}`), form);
  form.querySelector("input").focus();
}

function show(...elements) {
  $("#quiz").replaceChildren(...elements);
}

// What is due, also without a network.

const SHOWN = 10;

async function showDue() {
  const found = await outbox.due();
  $("#due-count").textContent = found.length ? `${count(found.length, "question")} to review.` : "Nothing is due.";
  $("#due").replaceChildren(...found.slice(0, SHOWN).map(({ pub_ids, recall, waiting }) => {
    const known = pub_ids.find((id) => questions.some((question) => question.pub_id === id)) ?? pub_ids[0];
    const said = waiting ? "answered here, waiting for its result" : `${Math.round(recall * 100)} % likely recalled`;
    const item = element("li", {}, title(known), element("p", { className: "soft" }, said));
    item.dataset.pubId = known;
    return item;
  }));
}

// The sessions.

async function showSessions() {
  const sessions = await outbox.sessions();
  $("#no-sessions").hidden = sessions.length > 0;
  $("#sessions").replaceChildren(...sessions.map(sessionItem));
}

function sessionItem({ uuid, recordedAt, sentAt, batch, result }) {
  const item = element("li", {},
    element("p", {}, `${new Date(recordedAt).toLocaleString()}, ${count(batch.attempts.length, "answer")}`));
  item.dataset.uuid = uuid;
  item.dataset.state = result?.status ?? (sentAt ? "sent" : "waiting");
  if (!result) {
    item.append(element("p", { className: "soft" },
      sentAt ? "Sent; waiting for its result." : "Kept here until there is a connection."));
  } else if (result.status === "rejected") {
    item.append(element("p", { className: "rejected" }, `Does not count: ${result.detail ?? result.reason}`));
  } else {
    item.append(...outcome(result));
  }
  return item;
}

function outcome(result) {
  const sum = (what) => result.sessions.reduce((total, session) => total + session[what], 0);
  const told = [
    `${sum("correct")} correct, ${sum("wrong")} wrong, ${sum("unsure")} unsure`,
    ...[["newly_correct", "newly correct"], ["recovered", "recovered"], ["relapsed", "relapsed"]]
      .filter(([what]) => sum(what))
      .map(([what, words]) => `${sum(what)} ${words}`),
  ];
  const due = (result.due ?? []).map(({ question_pub_id, due_at }) =>
    element("li", {}, `${title(question_pub_id)} Due again on ${new Date(due_at).toLocaleDateString()}.`));
  const skipped = (result.skipped ?? []).map(({ question_pub_id, reason }) =>
    element("li", {}, `${title(question_pub_id)} Left out: ${reason.replaceAll("_", " ")}.`));
  return [element("p", {}, `${told.join("; ")}.`), element("ul", {}, ...due, ...skipped)];
}

function title(pubId) {
  return questions.find((question) => question.pub_id === pubId)?.text ?? pubId;
}

/** The time now with this device's offset from UTC, in RFC 3339. */
function localNow(now = new Date()) {
  const minutes = -now.getTimezoneOffset();
  const local = new Date(now.getTime() + minutes * 60_000).toISOString().slice(0, -1);
  const two = (number) => String(Math.floor(Math.abs(number))).padStart(2, "0");
  return `${local}${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
}

function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The login.

const form = $("#login form");
const login = await outbox.login();
if (login) Object.entries(login).forEach(([name, value]) => (form.elements[name].value = value));
$("#login").open = !login;
form.onsubmit = async (event) => {
  event.preventDefault();
  await outbox.saveLogin(Object.fromEntries(new FormData(form)));
  $("#login").open = false;
  relay.wake();
};

offer();
await showSessions();
await showDue();
if ("serviceWorker" in navigator) await navigator.serviceWorker.register("service-worker.js");
// Two tabs would close each other's connection, because they share a login. So the second one waits.
navigator.locks.request("study-viewer-relay", () => relay.run());
