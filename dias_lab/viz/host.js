const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data"), alone = window === window.parent;
const state = { ...read("start"), data, ...(alone ? fromAddress() : {}) };
const listeners = {};
let waiting;

/** What the page's address says of its view, #image=3&stop=4&slot=2&view=segments&at=5,6, in the numbers of Python's explore.
 *  Of clips it says #clip=1&frame=7 as well, instead of the image; what it leaves out of the two is 0. */
function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1)), found = {}, { runs, images, clips } = data, [{ slots, attention }] = runs;
  const stops = Math.max(...runs.map((run) => run.attention.stops)) + runs.some((run) => run.decoder);
  const whole = (text, below) => /^\d{1,9}$/.test(text) && Number(text) < below;
  for (const [name, size] of Object.entries({ image: images.length, stop: stops, slot: slots }))
    if (whole(said.get(name), size)) found[name] = Number(said.get(name));
  const places = clips ? [["clip", clips.names.length, clips.frames], ["frame", clips.frames, 1]] : [];
  const named = places.filter(([name, size]) => whole(said.get(name), size));
  if (named.length) found.image = named.reduce((sum, [name, , factor]) => sum + factor * said.get(name), 0);
  if (VIEWS.some(({ name }) => name === said.get("view"))) found.view = said.get("view");
  if (runs.some(({ training }) => training?.steps.map(String).includes(said.get("step")))) found.step = Number(said.get("step"));
  const [row, column, ...more] = (said.get("at") ?? "").split(",");
  if (whole(row, attention.height) && whole(column, attention.width) && !more.length) found.location = [Number(row), Number(column)];
  return Object.keys(found).length ? { slot: null, location: null, ...found } : {}; // what it leaves out is free
}

function toAddress() {
  const frames = data.clips?.frames, place = frames ? { clip: Math.floor(state.image / frames), frame: state.image % frames } : { image: state.image };
  const said = { ...place, stop: state.stop, step: state.step, slot: state.slot, view: state.view, at: state.location?.join() };
  const words = Object.entries(said).filter(([, value]) => value !== null && value !== undefined);
  history.replaceState(null, "", `#${words.map((word) => word.join("=")).join("&")}`);
}

const model = {
  get: (name) => state[name],
  set(name, value) { state[name] = value; (listeners[`change:${name}`] ?? []).forEach((listener) => listener()); },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  off: (event, listener) => (listeners[event] = listeners[event].filter((other) => other !== listener)),
  save_changes() {
    if (!alone) return;
    clearTimeout(waiting); // a browser counts the changes of an address
    waiting = setTimeout(toAddress, 200);
  },
};
render({ el: document.getElementById("explorer"), model });
if (alone) addEventListener("hashchange", () => Object.entries(fromAddress()).forEach(([name, value]) => model.set(name, value)));
const frame = window.frameElement;
if (frame) new ResizeObserver(() => (frame.style.height = `${document.body.offsetHeight}px`)).observe(document.body);
