// Lets the page open without a network: it shows the stored files at once, and then updates them.
//
// It stores only the page's own files. Sessions and results are in IndexedDB.

const CACHE = "study-viewer";
const FILES = ["./", "app.js", "mqtt.js", "outbox.js", "progress.js", "relay.js", "viewer.css", "questions.json"];

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(FILES))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== self.location.origin) return;
  event.respondWith(answer(event));
});

async function answer(event) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(event.request, { ignoreSearch: true });
  const renewed = fetch(event.request).then((response) => {
    if (response.ok) cache.put(event.request, response.clone());
    return response;
  });
  if (!kept) return renewed;
  event.waitUntil(renewed.catch(() => {}));
  return kept;
}
