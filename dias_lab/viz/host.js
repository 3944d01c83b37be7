const read = (id) => JSON.parse(document.getElementById(id).textContent);
const state = { ...read("start"), data: read("data") };
const listeners = {};
render({ el: document.getElementById("explorer"), model: {
  get: (name) => state[name],
  set(name, value) { state[name] = value; (listeners[`change:${name}`] ?? []).forEach((listener) => listener()); },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  off: (event, listener) => (listeners[event] = listeners[event].filter((other) => other !== listener)),
  save_changes() {},
} });
const frame = window.frameElement;
if (frame) new ResizeObserver(() => (frame.style.height = `${document.body.offsetHeight}px`)).observe(document.body);
