// Keeps what is marked with data-live fresh: every few seconds the page is fetched again, and parts
// that have changed are replaced in place. Scroll, focus, open details and selections stay.

const EVERY = 5000;
const parts = () => [...document.querySelectorAll("[data-live]")];
const controls = (part) => [...part.querySelectorAll("a, button, input, select, summary")];
let isOn = true;

const isBusy = (part) => {
  const selection = getSelection();
  return (
    (!selection.isCollapsed && part.contains(selection.anchorNode)) ||
    (part.contains(document.activeElement) && document.activeElement.matches("input, select"))
  );
};

const replace = (part, fresh) => {
  if (part.innerHTML === fresh.innerHTML || isBusy(part)) return;
  const opened = [...part.querySelectorAll("details")].map((each) => each.open);
  const focused = controls(part).indexOf(document.activeElement);
  part.replaceChildren(...fresh.childNodes);
  part.querySelectorAll("details").forEach((each, place) => {
    if (opened.length > place) each.open = opened[place];
  });
  if (focused >= 0) controls(part)[focused]?.focus({ preventScroll: true });
};

const refresh = async () => {
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts()) {
      const fresh = page.getElementById(part.id);
      if (fresh) replace(part, fresh);
    }
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  }
};

const keep = async () => {
  if (isOn && !document.hidden) await refresh();
  setTimeout(keep, EVERY);
};

if (parts().length) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  const say = () => {
    button.textContent = isOn ? "Pause updates" : "Update again";
  };
  button.addEventListener("click", () => {
    isOn = !isOn;
    say();
  });
  say();
  document.getElementById("live").append(button);
  setTimeout(keep, EVERY);
}
