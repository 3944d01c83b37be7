// The attention explorer: which slot takes each place of a picture, at every iteration.
//
// One module with two hosts. anywidget imports it in JupyterLab and calls the default export's `render`; a page that
// needs no kernel contains its text and calls `render` with a model of a few lines (explorer.py writes both). It loads
// nothing, from anywhere. Text from data reaches the page by textContent only.
//
// The model's fields: data (what explorer.py's `payload` gives), image, stop, location ([row, column] or null), slot (a
// number or null), view and step; all but data may be set from either side. A "stop" is a place on the slider: the
// iterations from 0, then the decoder. Locations are cells of the first run's attention maps. Two runs share picture,
// cursor, zoom and stop; each has its own chosen slot, and slots of the second have the colours of those of the first that
// they overlap with. Where runs have maps of several training steps, `step` is one of them (else null), and the state's
// `step` its place on a second slider; a slot starts from the same noise at each of them, and keeps its colour. Where images
// are the frames of clips, clip after clip, the state's `frame` is the image's place in its clip and on a slider; strips and
// films of clips are in clips.js, which is part of this module.

const VIEWS = [
  { name: "overlay", title: "Overlay", key: "o", opacity: 0.65 },
  { name: "heat", title: "Heat map", key: "h", opacity: 0.9 },
  { name: "masked", title: "Masked", key: "m", opacity: null },
  { name: "segments", title: "Segments", key: "s", opacity: 0.85 },
  { name: "difference", title: "Difference", key: "d", opacity: 0.9 },
];
const KEYS = [
  ["← →", "previous, next iteration"], ["space", "play"], ["o h m s d", "overlay, heat map, masked, segments, difference"],
  ["0 … 9", "show one slot alone; again: all"], ["shift + arrows", "move the cursor"], ["enter", "lock the cursor, or free it"],
  ["esc", "free the cursor, show all slots"], ["[ ]", "previous, next picture"], ["+ − r", "zoom in, out, whole picture"],
  ["t", "true outlines"], ["n", "slot numbers"], ["g", "one colour a cluster of merged slots"], ["l", "light or dark"],
  ["c", "copy as PNG"], ["e", "save a PNG for print"], ["?", "this list"],
];
const TRAINING_KEYS = [[", .", "previous, next training step"], ["p", "play the training"]];
const CLIP_KEYS = [["j k", "previous, next frame"], ["f", "play the clip"], ["[ ]", "previous, next clip"], ["v", "save a film"]];
const TRACKS = { // the sliders: milliseconds of a place, the words of its button
  stop: { label: "iteration", pace: 900, play: "Play (space)", pause: "Pause (space)" },
  step: { label: "training step", pace: 600, play: "Play the training (p)", pause: "Pause (p)" },
  frame: { label: "frame", pace: 125, play: "Play the clip (f)", pause: "Pause (f)" },
};
const HINT = "Hover to read a place, click to lock it. Click on a slot to see it alone. Ctrl and the wheel zoom; drag to pan.";
const CAPTIONS = { // of all slots, and of one; # is its number, @ the iteration of reference
  overlay: ["Each place has the mixed colours of the slots that attend to it.",
    "Where slot # attends: the stronger its colour, the larger its share."],
  heat: ["The largest share that any slot has of a place: low where slots compete.", "Slot #’s share of each place."],
  masked: ["The picture, faded where no slot has a place for itself.",
    "The picture as slot # has it: what it leaves to others fades away."],
  segments: ["Each pixel goes to the slot with the largest share.", "Where slot # has the largest share."],
  difference: ["The share of each place that changed slots since @.", "What slot # lost (blue) and gained (orange) since @."],
};
const ICONS = {
  play: "M5 3.5v9l7.5-4.5z", pause: "M4.5 3.5h2.5v9H4.5zM9 3.5h2.5v9H9z",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  save: "M8 2.5v7.5M4.8 7l3.2 3.2L11.2 7M2.5 11v2.5h11V11", film: "M2.5 4h7.5v8H2.5zM10 7.2l3.5-2v5.6l-3.5-2", stop: "M4 4h8v8H4z",
  theme: "M13 9.3A5.3 5.3 0 1 1 6.7 3 4.2 4.2 0 0 0 13 9.3z",
  help: "M5.8 6a2.2 2.2 0 1 1 3.3 1.9c-.8.5-1.1.9-1.1 1.8M8 12.2v.3",
  close: "M4.5 4.5l7 7M11.5 4.5l-7 7", closer: "M8 3.5v9M3.5 8h9", farther: "M3.5 8h9",
  whole: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
};
const LOST = [0, 114, 178], GAINED = [213, 94, 0]; // blue, vermillion: told apart in every kind of colour vision
const SPECIAL = { 0: "background", 254: "overlap", 255: "void" };
const PRINT_WIDTH = 2000; // pixels of a PNG for print, at least
const ROOM = { dense: [107, 42], tight: [54, 31] }; // a table is so where a panel has fewer pixels than the first and the others a column
const MANY = 12; // slots: more have their tiles below, and smaller

// ---------------------------------------------------------------- arrays
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** Float16 numbers, none of them negative, as float32: exactly what the trace holds. */
function floatsOf(base64) {
  return Float32Array.from(new Uint16Array(bytesOf(base64).buffer), (half) => {
    const exponent = half >> 10, fraction = half & 1023;
    return exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
  });
}

/** A label map Uint8Array [height width], inflated. */
async function labelsOf({ deflated }) {
  const stream = new Blob([bytesOf(deflated)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The maps of one stop: `slots` maps of height x width cells, and what is derived from them once. */
class Maps {
  constructor(values, slots, height, width) {
    Object.assign(this, { values, slots, height, width, size: height * width });
  }

  of(slot) { return this.values.subarray(slot * this.size, (slot + 1) * this.size); }

  /** The cell [row, column] under a point of the picture (fractions of its width and height). */
  cell({ x, y }) {
    return [[y, this.height], [x, this.width]].map(([part, size]) => clamp(Math.floor(part * size), 0, size - 1));
  }

  /** A slot's value in the cell under a point, or its mean if there is no point. */
  read(slot, point) {
    if (!point) return this.of(slot).reduce((sum, value) => sum + value, 0) / this.size;
    const [row, column] = this.cell(point);
    return this.of(slot)[row * this.width + column];
  }

  /** Which slots have no share of any cell: those that are left out of the competition. */
  get empty() { return (this.blank ??= Array.from({ length: this.slots }, (_, slot) => this.of(slot).every((value) => value === 0))); }

  /** Entropy over slots / log N of each cell: 0 for one slot, 1 for all alike. */
  get entropy() {
    if (this.entropies) return this.entropies;
    const sum = new Float32Array(this.size);
    for (let slot = 0; slot < this.slots; slot++)
      this.of(slot).forEach((value, cell) => (sum[cell] -= value * Math.log(Math.max(value, 1e-12))));
    return (this.entropies = sum.map((value) => clamp(value / Math.log(Math.max(this.slots, 2)), 0, 1)));
  }

  /** Red, green and blue of each cell: the slots' colours, weighted by attention. */
  mixed(colours) {
    if (this.mixedOf === colours) return this.mixture;
    this.mixedOf = colours;
    this.mixture = [0, 1, 2].map((channel) => {
      const mix = new Float32Array(this.size);
      for (let slot = 0; slot < this.slots; slot++)
        this.of(slot).forEach((value, cell) => (mix[cell] += value * colours[slot][channel]));
      return mix;
    });
    return this.mixture;
  }

  /** What a slot gained in each cell since `other`; where that has other cells, since the one at the same place. */
  gain(other, slot) {
    const before = other.of(slot), { width, height } = this;
    return this.of(slot).map((value, cell) => {
      const row = Math.floor(((Math.floor(cell / width) + 0.5) / height) * other.height);
      return value - before[row * other.width + Math.floor((((cell % width) + 0.5) / width) * other.width)];
    });
  }

  /** Half the sum over slots of what changed in each cell: the share of it that went to other slots. */
  changed(other) {
    const sum = new Float32Array(this.size);
    for (let slot = 0; slot < this.slots; slot++) this.gain(other, slot).forEach((gain, cell) => (sum[cell] += Math.abs(gain) / 2));
    return sum;
  }

  /** For each slot, the cell [row, column] where its number stands: amid its own cells. Null where it wins next to none. */
  get anchors() {
    if (this.places) return this.places;
    const { height, width, size, slots, values } = this, won = new Array(slots).fill(0), best = new Array(slots).fill(-1);
    this.places = new Array(slots).fill(null);
    for (let cell = 0; cell < size; cell++) {
      const row = Math.floor(cell / width), column = cell % width;
      let slot = 0, around = 0;
      for (let other = 1; other < slots; other++) if (values[other * size + cell] > values[slot * size + cell]) slot = other;
      for (let y = Math.max(row - 3, 0); y <= Math.min(row + 3, height - 1); y++)
        for (let x = Math.max(column - 3, 0); x <= Math.min(column + 3, width - 1); x++)
          around += values[slot * size + y * width + x];
      won[slot]++;
      if (around > best[slot]) [best[slot], this.places[slot]] = [around, [row, column]];
    }
    return (this.places = this.places.map((place, slot) => (won[slot] < Math.max(2, 0.008 * size) ? null : place)));
  }
}

/** Where each of `length` pixels lies between the `size` cells: pixel centres aligned, border repeated. */
function interpolation(size, length, start, extent) {
  const low = new Uint16Array(length), high = new Uint16Array(length), share = new Float32Array(length);
  for (let pixel = 0; pixel < length; pixel++) {
    const position = clamp((start + ((pixel + 0.5) / length) * extent) * size - 0.5, 0, size - 1);
    low[pixel] = position;
    high[pixel] = Math.min(low[pixel] + 1, size - 1);
    share[pixel] = position - low[pixel];
  }
  return { low, high, share };
}

/** The pixels of one canvas: the picture seen through a window, maps upsampled to it, and the views painted on it. */
class Raster {
  constructor(width, height) {
    Object.assign(this, { width, height, count: width * height, line: Math.max(1, Math.round(width / 1000)), tables: new Map() });
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.buffers = [0, 1, 2].map(() => new Float32Array(this.count));
    this.grey = new Uint8Array(this.count);
    this.plain = new Uint32Array(this.count);
    this.labels = new Uint8Array(this.count);
  }

  look(picture, seen) {
    if (this.picture === picture && this.seen === seen) return;
    const pen = (this.pen ??= new OffscreenCanvas(this.width, this.height).getContext("2d", { willReadFrequently: true }));
    const { naturalWidth: width, naturalHeight: height } = picture, { x, y, size } = seen;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, x * width, y * height, size * width, size * height, 0, 0, this.width, this.height);
    const colours = pen.getImageData(0, 0, this.width, this.height).data, { grey, plain, count } = this;
    for (let i = 0, at = 0; i < count; i++, at += 4) {
      grey[i] = (colours[at] + colours[at + 1] + colours[at + 2]) / 3;
      plain[i] = pack(grey[i], grey[i], grey[i]);
    }
    if (this.seen !== seen) this.tables = new Map();
    Object.assign(this, { picture, seen, colours, labelled: null, undecided: null });
  }

  table({ height, width }) {
    const key = `${height} ${width}`, { x, y, size } = this.seen;
    if (!this.tables.has(key)) {
      const rows = interpolation(height, this.height, y, size), columns = interpolation(width, this.width, x, size);
      this.tables.set(key, { rows, columns, wide: new Float32Array(height * this.width) });
    }
    return this.tables.get(key);
  }

  /** One map, bilinear, into one of the three buffers: first along rows of cells, then across them. */
  upsample(map, maps, buffer = 0) {
    const { rows, columns, wide } = this.table(maps), out = this.buffers[buffer], length = this.width;
    for (let row = rows.low[0]; row <= rows.high[this.height - 1]; row++)
      for (let x = 0, to = row * length, from = row * maps.width; x < length; x++) {
        const value = map[from + columns.low[x]];
        wide[to + x] = value + (map[from + columns.high[x]] - value) * columns.share[x];
      }
    for (let y = 0, i = 0; y < this.height; y++) {
      const above = rows.low[y] * length, below = rows.high[y] * length, share = rows.share[y];
      for (let x = 0; x < length; x++, i++) out[i] = wide[above + x] + (wide[below + x] - wide[above + x]) * share;
    }
    return out;
  }

  /** The largest value of any slot (buffer 1) and, in `labels`, whose it is. In the block of pixels between four cells, a
   *  slot can only win if its largest corner reaches the smallest corner of every other: few slots are compared. */
  winners(maps) {
    const best = this.buffers[1], { labels } = this, { rows, columns } = this.table(maps), { values, size, width } = maps;
    if (this.labelled === maps) return best;
    best.fill(-1);
    for (let top = 0, bottom; top < this.height; top = bottom) {
      for (bottom = top + 1; bottom < this.height && rows.low[bottom] === rows.low[top]; ) bottom++;
      for (let left = 0, right; left < this.width; left = right) {
        for (right = left + 1; right < this.width && columns.low[right] === columns.low[left]; ) right++;
        const above = rows.low[top] * width, below = rows.high[top] * width, near = columns.low[left], far = columns.high[left];
        let least = 0;
        for (let cell = 0; cell < values.length; cell += size)
          least = Math.max(least, Math.min(values[cell + above + near], values[cell + above + far],
            values[cell + below + near], values[cell + below + far]));
        for (let slot = 0, cell = 0; slot < maps.slots; slot++, cell += size) {
          const a = values[cell + above + near], b = values[cell + above + far];
          const c = values[cell + below + near], d = values[cell + below + far];
          if (Math.max(a, b, c, d) < least) continue;
          for (let y = top; y < bottom; y++) {
            const start = a + (c - a) * rows.share[y], step = b + (d - b) * rows.share[y] - start;
            for (let x = left, i = y * this.width + left; x < right; x++, i++) {
              const value = start + step * columns.share[x];
              if (value > best[i]) (best[i] = value), (labels[i] = slot);
            }
          }
        }
      }
    }
    this.labelled = maps;
    return best;
  }

  /** Paint a view of one slot, or of all where `slot` is null. `look` must have been called. */
  paint({ view, maps, other, colours, scale, opacity, faded, paper }, slot) {
    const all = slot === null, colour = all ? null : colours[slot];
    const { pixels, grey, plain, colours: picture, labels, width, count, line } = this;
    if (view === "overlay" && all) {
      const [red, green, blue] = maps.mixed(colours).map((channel, buffer) => this.upsample(channel, maps, buffer));
      this.labelled = this.undecided = null;
      for (let i = 0; i < count; i++) pixels[i] = blend(grey[i], red[i], green[i], blue[i], opacity);
    } else if (view === "overlay") {
      const share = this.upsample(maps.of(slot), maps);
      for (let i = 0; i < count; i++) pixels[i] = tint(grey[i], colour, share[i] * opacity);
    } else if (view === "masked") {
      const share = all ? this.winners(maps) : this.upsample(maps.of(slot), maps), [red, green, blue] = paper;
      for (let i = 0; i < count; i++) {
        const at = 4 * i, part = share[i];
        pixels[i] = pack(mix(red, picture[at], part), mix(green, picture[at + 1], part), mix(blue, picture[at + 2], part));
      }
    } else if (view === "segments") {
      this.winners(maps);
      const entropy = this.undecided === maps ? this.buffers[2] : this.upsample(maps.entropy, maps, 2);
      this.undecided = maps;
      for (let y = 0, i = 0; y < this.height; y++)
        for (let x = 0, low = y + line < this.height ? line * width : 0; x < width; x++, i++) {
          const label = labels[i];
          if (!all && label !== slot) pixels[i] = plain[i];
          else if (labels[i + low] !== label || (x + line < width && labels[i + line] !== label))
            pixels[i] = blend(grey[i], 255, 255, 255, 0.7);
          else pixels[i] = tint(grey[i], colours[label], opacity * (faded ? 1 - entropy[i] : 1));
        }
    } else if (view === "difference" && !all) {
      const gain = this.upsample(maps.gain(other, slot), maps);
      for (let i = 0; i < count; i++) pixels[i] = tint(grey[i], gain[i] > 0 ? GAINED : LOST, Math.abs(gain[i]) * opacity);
    } else {
      const heat = view === "heat", share = heat && all ? this.winners(maps) : this.upsample(heat ? maps.of(slot) : maps.changed(other), maps);
      for (let i = 0; i < count; i++) {
        const at = 3 * Math.min((share[i] * 256) | 0, 255);
        pixels[i] = blend(grey[i], scale[at], scale[at + 1], scale[at + 2], opacity);
      }
    }
    return this.image;
  }
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const pack = (red, green, blue) => 0xff000000 | ((blue + 0.5) << 16) | ((green + 0.5) << 8) | (red + 0.5);
const mix = (from, to, share) => from + (to - from) * share;
const blend = (grey, red, green, blue, share) => pack(mix(grey, red, share), mix(grey, green, share), mix(grey, blue, share));
const tint = (grey, colour, share) => blend(grey, colour[0], colour[1], colour[2], share);

// ---------------------------------------------------------------- page elements
/** An element: properties that start with "on" are listeners, children that are text become text and never markup. */
function make(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split("."), element = document.createElement(tag || "div");
  element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties))
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element[name] = value;
  element.append(...children.filter((child) => child !== null));
  return element;
}

function icon(name) {
  const [svg, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.ariaHidden = "true";
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const button = (kind, properties, ...children) => make(`button.${kind}`, { type: "button", ...properties }, ...children);
const iconButton = (name, title, onclick) => button("icon", { title, ariaLabel: title, onclick }, icon(name));
const canvas = (width = 1, height = 1) => make("canvas", { width, height, ariaHidden: "true" });
const inkOn = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue > 132 ? "#111" : "#fff");
const number = (value) => value.toFixed(2);
const write = (element, text) => element.textContent === text || (element.textContent = text); // the same text costs a layout

/** The document whose theme counts: the one around an iframe, too. */
const hostDocument = () => window.frameElement?.ownerDocument ?? document;

function hostIsDark() {
  const light = hostDocument().body.dataset.jpThemeLight; // JupyterLab's
  return light ? light === "false" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// ---------------------------------------------------------------- the explorer
class Explorer {
  constructor(model, shadow) {
    const data = model.get("data"), { runs, colours, scale, clips } = data;
    Object.assign(this, { model, data, memory: new Map(), waiting: new Set(), closing: new AbortController(), timers: {} });
    Object.assign(this, { first: clips?.first, frames: clips?.frames ?? 1, incoming: new Incoming(this) });
    this.colours = colours.map((colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16)));
    this.scale = bytesOf(scale);
    const iterations = Math.max(...runs.map((run) => run.attention.stops));
    this.stops = Array.from({ length: iterations }, (_, stop) => `${stop + 1}`);
    if (runs.some((run) => run.decoder)) this.stops.push("decoder");
    this.steps = [...new Set(runs.flatMap(({ training }) => training?.steps ?? []))].sort((a, b) => a - b);
    this.state = {
      image: model.get("image"), frame: model.get("image") % this.frames, stop: model.get("stop"), step: this.stepAt(model.get("step")),
      view: model.get("view"), location: model.get("location"),
      chosen: runs.map((_, run) => (run ? null : model.get("slot"))), // the slot shown alone, of each run
      point: null, // the cursor: fractions of the picture
      seen: { x: 0, y: 0, size: 1 }, // the window that zoom leaves of the picture
      reference: 0, truth: false, numbers: true, faded: true, clusters: true, dark: null,
      opacity: Object.fromEntries(VIEWS.map((view) => [view.name, view.opacity])),
    };
    this.build();
    shadow.replaceChildren(this.root);
    this.listen(shadow.host);
    this.showImage();
  }

  close() {
    this.closing.abort();
    Object.values(this.timers).forEach(clearInterval);
  }

  // ---------- what is where
  stopName(stop) {
    if (stop === this.stops.length) return this.stepName(0); // the reference before training
    return stop === "decoder" || this.stops[stop] === "decoder" ? "decoder" : `iteration ${stop + 1}`;
  }

  stepName(at) { return `training step ${this.steps[at]}`; }

  /** A frame's own number, from 1: of a stream, only the last ones are here. */
  frameName(at) { return `${this.data.clips.first + at + 1}`; }

  /** Which clip is shown: of images, each is its own. */
  get clip() { return Math.floor(this.state.image / this.frames); }

  /** The place of a training step on its slider: the last for none. */
  stepAt(step) {
    const at = this.steps.indexOf(step);
    return at < 0 ? Math.max(this.steps.length - 1, 0) : at;
  }

  /** What a run shows at a stop of the slider: "decoder" or an iteration; its last one where it has no more. */
  stopOf(run, stop) {
    const { attention, decoder } = this.data.runs[run];
    return this.stops[stop] === "decoder" && decoder ? "decoder" : Math.min(stop, attention.stops - 1);
  }

  /** Which of its own training steps a run shows at a place of their slider: the last before it, or the first. */
  ownStep(run, at) { return Math.max(this.data.runs[run].training.steps.findLastIndex((step) => step <= this.steps[at]), 0); }

  /** The number of an earlier step of the run's training, or -1: the last step's maps are the run's own, and exact. */
  earlier(run, at) {
    const { training } = this.data.runs[run], own = training ? this.ownStep(run, at) : -1;
    return own + 1 === training?.steps.length ? -1 : own;
  }

  /** The Maps of a run at a stop of the slider, and at a place of that of training steps. */
  maps(run, stop, at = this.state.step) {
    const which = this.stopOf(run, stop), [kind, index] = which === "decoder" ? [which, 0] : ["attention", which];
    const { [kind]: last, slots, training } = this.data.runs[run], earlier = this.earlier(run, at), { image } = this.state;
    const { images, stops, height, width } = earlier < 0 ? last : training[kind];
    return this.remember(`${run} ${kind} ${earlier < 0} ${image}`, () => {
      const values = earlier < 0 ? floatsOf(images[image]) : Float32Array.from(bytesOf(images[image]), (byte) => byte / 255);
      const size = values.length / stops;
      return Array.from({ length: stops }, (_, stop) =>
        new Maps(values.subarray(stop * size, (stop + 1) * size), slots, height, width));
    })[Math.max(earlier, 0) * last.stops + index];
  }

  /** Which slots of a run are kept in the image shown. */
  kept(run) {
    const { keep, training } = this.data.runs[run], earlier = this.earlier(run, this.state.step);
    return (earlier < 0 ? keep : training.keep[earlier])[this.state.image];
  }

  /** The slot that each slot of a run belongs to at a stop, or null where nobody knows. */
  leaders(run, stop = this.stops.length - 1) {
    const { leader } = this.data.runs[run];
    return leader && this.earlier(run, this.state.step) < 0 ? leader[Math.min(stop, leader.length - 1)][this.state.image] : null;
  }

  /** Which slots of a run are merged away, or left out, at a stop: they take part before. */
  gone(run, stop) {
    const { empty } = this.maps(run, stop);
    return this.kept(run).map((keep, slot) => !keep && empty[slot]);
  }

  /** For each slot of a run whether it is gone where the slider stands, its tag, and the same in words. */
  fates(run) {
    const { stop, image } = this.state, gone = this.gone(run, stop), leaders = this.leaders(run, stop);
    const absent = this.gone(run, 0), { colours } = this.data.runs[run], first = this.data.runs[0].slots;
    return gone.map((away, slot) => {
      const into = leaders?.[slot] ?? slot, taken = gone.flatMap((one, other) => (one && leaders?.[other] === slot ? [other] : []));
      const words = [], like = colours?.[image][slot] ?? first;
      if (away) words.push(absent[slot] ? "left out from the start" : into === slot ? "merged into another" : `merged into slot ${into}`);
      else if (taken.length) words.push(`with what was slot ${taken.join(", ")}`);
      if (like < first) words.push(`like slot ${like} of the first run`);
      const tag = !away ? (taken.length ? `+ ${taken.join(", ")}` : "") : absent[slot] ? "left out" : into === slot ? "merged" : `in ${into}`;
      return { away, tag, words: words.join(", ") };
    });
  }

  /** How many slots a run has in the image shown, and how many are left after which iteration. */
  count(run) {
    const { slots } = this.data.runs[run], left = this.kept(run).filter(Boolean).length;
    const after = this.stops.findIndex((_, stop) => this.gone(run, stop).filter(Boolean).length === slots - left);
    if (left === slots) return `${slots} slots`;
    return after > 0 ? `${slots} slots, ${left} after ${this.stopName(this.stopOf(run, after - 1))}` : `${left} of ${slots} slots kept`;
  }

  /** The colours of a run's slots in the image shown; a slot that will be merged has its leader's, if so wished. */
  paints(run) {
    const { slots, colours } = this.data.runs[run], { image, clusters } = this.state, leaders = clusters ? this.leaders(run) : null;
    return this.remember(`paints ${run} ${image} ${leaders !== null}`, () => Array.from({ length: slots }, (_, slot) => {
      const leader = leaders?.[slot] ?? slot;
      return this.colours[(colours?.[image][leader] ?? leader) % this.colours.length];
    }));
  }

  /** What was made before under this key, or what is made now. */
  remember(key, make) {
    if (!this.memory.has(key)) this.memory.set(key, make());
    return this.memory.get(key);
  }

  get about() { return this.data.images[this.state.image]; }

  /** True segments Uint8Array of the image shown, or null: there are none, or they are not inflated yet. */
  get segments() { return this.memory.get(`segments ${this.state.image}`) ?? null; }

  get dark() { return this.state.dark ?? hostIsDark(); }

  /** Where a cell of some maps is on the stage: left, top, width and height as fractions of it. */
  box(maps, [row, column]) {
    const { x, y, size } = this.state.seen;
    return [(column / maps.width - x) / size, (row / maps.height - y) / size, 1 / maps.width / size, 1 / maps.height / size];
  }

  // ---------- building
  build() {
    const { state, data } = this, parts = (this.parts = { title: make("h1"), about: make("p.about") });
    parts.views = VIEWS.map(({ name, title, key }) =>
      button("", { title: `${title} (${key})`, onclick: () => this.set({ view: name }) }, title));
    parts.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05,
      oninput: () => this.set({ opacity: { ...state.opacity, [state.view]: parts.opacity.valueAsNumber } }) });
    for (const field of ["truth", "numbers", "faded", "clusters"])
      parts[field] = make("input", { type: "checkbox", onchange: () => this.set({ [field]: parts[field].checked }) });
    parts.reference = make("select", { onchange: () => this.set({ reference: parts.reference.selectedIndex }) },
      ...this.stops.map((_, stop) => make("option", {}, this.stopName(stop))),
      this.steps.length > 1 ? make("option", {}, this.stepName(0)) : "");
    parts.options = {
      reference: make("label", {}, "since", parts.reference), faded: make("label", {}, parts.faded, "fade by entropy"),
      clusters: make("label", {}, parts.clusters, "one colour a cluster"),
      numbers: make("label", {}, parts.numbers, "numbers"), truth: make("label", {}, parts.truth, "true outlines"),
      opacity: make("label", {}, "opacity", parts.opacity),
    };
    const { clips } = data, what = clips ? "clip" : "picture", firsts = data.images.filter((_, image) => image % this.frames === 0);
    parts.film = firsts.map(({ name: own, picture }, at) => {
      const name = clips?.names[at] ?? own, choose = () => this.set({ image: at * this.frames + state.frame });
      return button("", { title: name, ariaLabel: `${what} ${at + 1}: ${name}`, onclick: choose },
        make("img", { alt: "", src: picture, decoding: "async" }));
    });
    this.tracks = clips ? { frame: this.buildTrack("frame", this.frameNames()) } : {};
    this.tracks.stop = this.buildTrack("stop", [this.stopName(0), ...this.stops.slice(1)]);
    const named = this.steps.map((step) => step.toLocaleString("en")), several = named.length > 1;
    if (several) this.tracks.step = this.buildTrack("step", [`step ${named[0]}`, ...named.slice(1)]);
    const timeline = make(".timelines", {}, ...Object.values(this.tracks).map(({ element }) => element));
    const keys = [...(clips ? CLIP_KEYS : []), ...(several ? TRAINING_KEYS : []), ...KEYS.filter(([key]) => !clips || key !== "[ ]")];
    parts.spoken = make(".spoken", { role: "status", ariaLive: "polite" });
    parts.note = make(".note", { hidden: true, ariaHidden: "true" });
    parts.help = make("dialog", { ariaLabel: "keys" }, iconButton("close", "Close", () => parts.help.close()),
      make("h3", {}, "Keys"), make("dl", {}, ...keys.flatMap(([keys, what]) => [make("dt", {}, keys), make("dd", {}, what)])),
      make("p", {}, HINT));
    this.runs = data.runs.map((_, run) => this.buildRun(run));
    const group = (kind, ariaLabel, children) => make(kind, { role: "group", ariaLabel }, ...children);
    const alone = this.runs.length === 1;
    if (alone) this.runs[0].left.append(timeline);
    const icons = [iconButton("copy", "Copy as PNG (c)", () => this.copy()),
      iconButton("save", "Save a PNG for print (e)", () => this.savePrint()),
      iconButton("theme", "Light or dark (l)", () => this.set({ dark: !this.dark })),
      iconButton("help", "Keys (?)", () => parts.help.showModal())];
    if (clips) icons.splice(2, 0, filmButton(this));
    if (this.model.get("stopped") !== undefined) this.tracks.frame.element.append(stopButton(this)); // of a stream
    this.root = make(".explorer", { role: "region", ariaLabel: "attention explorer" }, make(".body", {},
      make(".head", {}, make(".title", {}, parts.title, parts.about), make(".icons", {}, ...icons)),
      firsts.length > 1 ? group(".film", `${what}s`, parts.film) : null,
      make(".tools", {}, group(".views", "view", parts.views), group(".options", "options", Object.values(parts.options))),
      alone ? null : timeline, make(`.runs.${alone ? "one" : "two"}`, {}, ...this.runs.map((run) => run.element)),
      parts.spoken, parts.note, parts.help));
  }

  /** A slider over a field of the state with its ticks, and the button that plays it. */
  buildTrack(field, names) {
    const { label } = TRACKS[field];
    const playing = button("play", { onclick: () => this.play(field) });
    const slider = make("input", { type: "range", min: 0, step: 1, ariaLabel: label,
      oninput: () => this.set({ [field]: slider.valueAsNumber }) });
    const rail = make(".ticks"), element = make(".timeline", {}, playing, make(".track", {}, slider, rail));
    return this.nameTicks({ field, playing, slider, ticks: [], rail, element }, names);
  }

  /** Give a track's places their names, of which there may be more than before. */
  nameTicks(track, names) {
    const { field, ticks, rail, slider } = track, last = names.length - 1;
    for (let at = ticks.length; at <= last; at++) ticks.push(button("", { tabIndex: -1, onclick: () => this.set({ [field]: at }) }));
    ticks.forEach((tick, at) => {
      write(tick, names[at]);
      tick.style.left = `${(100 * at) / Math.max(last, 1)}%`;
    });
    rail.append(...ticks.slice(rail.childElementCount));
    slider.max = last;
    return Object.assign(track, { names, last });
  }

  frameNames() { return Array.from({ length: this.frames }, (_, at) => (at ? "" : "frame ") + this.frameName(at)); }

  /** One run: its picture with cursor and zoom, its tiles (a small picture per slot), and its table of values. */
  buildRun(index) {
    const { slots, name } = this.data.runs[index], body = make("tbody");
    const run = { tiles: [], rows: [], cells: [], base: canvas(), marks: canvas(), cursor: make(".cursor"),
      ramp: make("span.ramp"), caption: make("span"), where: make("h3"), detail: make("p"), which: make("span") };
    const zooms = [["closer", "Zoom in (+)", 2], ["farther", "Zoom out (−)", 0.5], ["whole", "Whole picture (r)", 0]];
    const zoom = make(".zoom", {}, ...zooms.map(([name, title, factor]) => iconButton(name, title, () => this.zoom(factor))));
    run.stage = make(".stage", { tabIndex: 0, role: "application" }, run.base, run.marks, run.cursor, zoom);
    run.stage.ariaLabel = `picture and attention ${name}; shift and arrow keys move the cursor, enter locks it`;
    run.left = make(".left", {}, make("figure", {}, run.stage, make("figcaption", {}, run.ramp, run.caption)));
    if (this.data.clips) run.left.append((run.strip = new Strip(this, index)).element);
    run.area = make(".tiles", { role: "group", ariaLabel: `slots of ${name || "the model"}` });
    run.area.style.setProperty("--tile", slots > MANY ? "92px" : slots > 6 ? "104px" : "136px");
    for (let slot = 0; slot < slots; slot++) {
      const choose = { onclick: () => this.choose(index, slot) };
      const tags = [0, 1].map(() => make("span.tag")), chips = tags.map(() => make("span.chip", {}, `${slot}`));
      const tile = { tags, picture: canvas(), cursor: make(".cursor"), value: make("span.value") };
      tile.small = make(".small", {}, tile.picture, tile.cursor);
      tile.button = button("tile", choose, tile.small, make(".label", {}, chips[0], tags[0], tile.value));
      run.cells.push(this.stops.map(() => make("td")));
      run.rows.push(make("tr", {}, make("th", { scope: "row" },
        button("", { tabIndex: -1, ariaLabel: `slot ${slot}`, ...choose }, chips[1], tags[1])), ...run.cells[slot]));
      run.tiles.push(tile);
    }
    body.append(...run.rows);
    run.area.append(...run.tiles.map((tile) => tile.button));
    run.heads = this.stops.map((stop, at) => make("th", { scope: "col" },
      button("", { tabIndex: -1, title: this.stopName(at), onclick: () => this.set({ stop: at }) },
        stop === "decoder" ? make("span", {}, "dec", make("span.rest", {}, "oder")) : stop)));
    run.table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { ariaLabel: "slot" }), ...run.heads)), body);
    run.table.style.setProperty("--stops", this.stops.length);
    run.scroll = make(".scroll", { tabIndex: 0, role: "group", ariaLabel: "values" }, run.table);
    run.element = make(`section.run.${slots > MANY ? "many" : "few"}`, { ariaLabel: name || "slots" },
      this.data.runs.length > 1 ? make("h2", {}, name, run.which) : null, run.left, run.area,
      make(".readout", {}, run.where, run.detail, run.scroll));
    return run;
  }

  // ---------- events
  listen(host) {
    const { signal } = this.closing, sizes = new ResizeObserver(() => this.fit());
    const theme = new MutationObserver(() => this.draw("pictures", "controls"));
    const on = (target, kind, listener) => target.addEventListener(kind, listener, { signal, passive: false });
    Object.values(this.tracks).forEach(({ rail }) => sizes.observe(rail));
    this.runs.forEach((run) => {
      let pressed = null;
      for (const element of [run.stage, run.scroll]) sizes.observe(element);
      if (run.strip) sizes.observe(run.strip.bar);
      on(run.stage, "pointerdown", (event) => {
        if (event.button || event.target.closest(".zoom")) return;
        pressed = { x: event.clientX, y: event.clientY, seen: this.state.seen };
      });
      on(run.stage, "pointermove", (event) => {
        if (pressed && !event.buttons) pressed = null;
        const [right, down] = pressed ? [event.clientX - pressed.x, event.clientY - pressed.y] : [0, 0];
        if (Math.hypot(right, down) > 4) pressed.moved = true;
        if (!pressed?.moved || this.state.seen.size === 1) return this.hover(this.pointOn(run.stage, event));
        const { x, y, size } = pressed.seen;
        this.look(x - (right / run.stage.clientWidth) * size, y - (down / run.stage.clientHeight) * size, size);
      });
      on(run.stage, "pointerup", (event) => {
        if (pressed && !pressed.moved) this.lock(this.pointOn(run.stage, event));
        pressed = null;
      });
      on(run.stage, "wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 1.25 : 0.8, this.pointOn(run.stage, event));
      });
      run.tiles.forEach(({ small }) => on(small, "pointermove", (event) => this.hover(this.pointOn(small, event))));
      for (const area of [run.stage, run.area]) on(area, "pointerleave", () => this.hover(null));
    });
    on(host.dataset.page ? document : this.root, "keydown", (event) => this.key(event));
    on(matchMedia("(prefers-color-scheme: dark)"), "change", () => this.draw("pictures", "controls"));
    theme.observe(hostDocument().body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
    for (const field of ["image", "stop", "view", "location", "slot", "step"]) {
      const changed = () => {
        const value = this.model.get(field);
        this.set(field === "slot" ? { chosen: [value, ...this.state.chosen.slice(1)] }
          : { [field]: field === "step" ? this.stepAt(value) : value }, false);
      };
      this.model.on(`change:${field}`, changed);
      signal.addEventListener("abort", () => this.model.off(`change:${field}`, changed));
    }
    signal.addEventListener("abort", () => [sizes, theme].forEach((observer) => observer.disconnect()));
  }

  /** The point of the picture under the pointer. */
  pointOn(element, event) {
    const { left, top, width, height } = element.getBoundingClientRect(), { x, y, size } = this.state.seen;
    const inside = (part) => clamp(part, 0, 0.999999) * size;
    return { x: x + inside((event.clientX - left) / width), y: y + inside((event.clientY - top) / height) };
  }

  key(event) {
    const target = event.composedPath()[0], { key } = event, { state } = this;
    const typing = ["input", "select"].includes(target.localName), count = this.data.images.length;
    const turn = (by) => this.set({ image: (state.image + by * this.frames + count) % count });
    const move = (by) => this.tracks.frame && this.set({ frame: clamp(state.frame + by, 0, this.frames - 1) });
    const learn = (by) => this.set({ step: clamp(state.step + by, 0, Math.max(this.steps.length - 1, 0)) });
    if (event.ctrlKey || event.metaKey || event.altKey || this.parts.help.open) return;
    const arrow = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    const view = VIEWS.find((view) => view.key === key);
    const actions = {
      "[": () => turn(-1), "]": () => turn(1), "+": () => this.zoom(2), "=": () => this.zoom(2),
      "-": () => this.zoom(0.5), r: () => this.zoom(0), t: () => this.set({ truth: !state.truth }),
      n: () => this.set({ numbers: !state.numbers }), g: () => this.set({ clusters: !state.clusters }), l: () => this.set({ dark: !this.dark }),
      ",": () => learn(-1), ".": () => learn(1), p: () => this.tracks.step && this.play("step"),
      j: () => move(-1), k: () => move(1), f: () => this.tracks.frame && this.play("frame"), v: () => this.tracks.frame && saveFilm(this),
      c: () => this.copy(), e: () => this.savePrint(), "?": () => this.parts.help.showModal(),
      Escape: () => this.set({ location: null, point: null, chosen: state.chosen.map(() => null) }),
    };
    if (arrow && event.shiftKey) this.step(...arrow);
    else if (arrow && !typing && arrow[1]) this.set({ stop: clamp(state.stop + arrow[1], 0, this.stops.length - 1) });
    else if (/^[0-9]$/.test(key)) this.choose(0, Number(key));
    else if (view) this.set({ view: view.name });
    else if (key === " " && !typing && target.localName !== "button") this.play(this.played ?? "stop");
    else if (key === "Enter" && target.classList?.contains("stage")) this.lock(state.point ?? { x: 0.5, y: 0.5 });
    else if (key in actions) actions[key]();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // ---------- changes
  /** Change the state, draw what depends on it, and tell the model, unless it was the model that said so. */
  set(change, tell = true) {
    if ("frame" in change) change = { ...change, image: this.clip * this.frames + change.frame };
    const { state, model } = this, before = { ...state }, { chosen: [solo] } = Object.assign(state, change);
    state.frame = state.image % this.frames;
    if ("location" in change) state.point = change.location ? this.pointOf(change.location) : change.point ?? null;
    if (tell) {
      const now = { image: state.image, stop: state.stop, view: state.view, location: state.location, slot: state.chosen[0],
        step: this.steps[state.step] ?? null };
      for (const field in now) if (`${now[field]}` !== `${model.get(field)}`) model.set(field, now[field]);
      model.save_changes();
    }
    if (state.image !== before.image) return this.showImage();
    const moved = Object.keys(change).every((field) => ["point", "location"].includes(field));
    this.draw("cursor", ...(moved ? [] : ["pictures", "marks", "controls"]));
    if (state.stop !== before.stop) this.say(this.stopName(state.stop));
    else if (state.step !== before.step) this.say(this.stepName(state.step));
    else if (solo !== before.chosen[0]) this.say(solo === null ? "all slots" : `slot ${solo} alone`);
    else if (state.view !== before.view) this.say(VIEWS.find(({ name }) => name === state.view).title);
    else if ("location" in change) this.say(this.reading());
  }

  /** The point to show for a location: the cursor's own where it lies in that cell, else the cell's centre. */
  pointOf([row, column]) {
    const { point } = this.state, maps = this.maps(0, 0);
    if (point && `${maps.cell(point)}` === `${row},${column}`) return point;
    return { x: (column + 0.5) / maps.width, y: (row + 0.5) / maps.height };
  }

  hover(point) { if (!this.state.location) this.set({ point }, false); }

  lock(point) {
    const cell = this.maps(0, 0).cell(point);
    this.state.point = point;
    this.set(`${cell}` === `${this.state.location}` ? { location: null, point } : { location: cell });
  }

  /** Move the cursor, locked or not, by cells. */
  step(down, right) {
    const maps = this.maps(0, 0), [row, column] = maps.cell(this.state.point ?? { x: 0.5, y: 0.5 });
    const cell = [clamp(row + down, 0, maps.height - 1), clamp(column + right, 0, maps.width - 1)];
    this.set(this.state.location ? { location: cell } : { point: this.pointOf(cell) });
    this.say(this.reading());
  }

  choose(run, slot) {
    if (slot >= this.data.runs[run].slots) return;
    this.set({ chosen: this.state.chosen.map((chosen, other) => (other !== run ? chosen : chosen === slot ? null : slot)) });
  }

  /** Play a slider, round and round, or pause it where it plays. Frames play beside another slider. */
  play(field) {
    const { timers } = this, plays = field in timers;
    const next = () => this.set({ [field]: (this.state[field] + 1) % this.tracks[field].names.length });
    for (const other of Object.keys(timers))
      if (other === field || (other !== "frame" && field !== "frame")) clearInterval(timers[other]), delete timers[other];
    if (!plays) timers[field] = setInterval(next, TRACKS[field].pace);
    this.draw("controls");
  }

  /** What plays, of iterations and training steps; else the frames, if they do. */
  get played() { return ["stop", "step", "frame"].find((field) => field in this.timers); }

  /** Zoom by a factor around a point; 0 shows the whole picture. */
  zoom(factor, point = this.state.point) {
    const { x, y, size } = this.state.seen, next = factor ? clamp(size / factor, 1 / 16, 1) : 1;
    const centre = point ?? { x: x + size / 2, y: y + size / 2 };
    this.look(centre.x - ((centre.x - x) * next) / size, centre.y - ((centre.y - y) * next) / size, next);
  }

  look(x, y, size) { this.set({ seen: { x: clamp(x, 0, 1 - size), y: clamp(y, 0, 1 - size), size } }, false); }
  say(text) { this.parts.spoken.textContent = text; }

  notify(text) {
    this.say(text);
    Object.assign(this.parts.note, { textContent: text, hidden: false });
    setTimeout(() => (this.parts.note.hidden = true), 2200);
  }

  /** The three largest values at the cursor, in words. */
  reading() {
    const { point, location, stop } = this.state, maps = this.maps(0, stop);
    if (!point) return "cursor free";
    const values = Array.from({ length: maps.slots }, (_, slot) => [slot, maps.read(slot, point)]).sort((a, b) => b[1] - a[1]);
    const [row, column] = maps.cell(point), first = values.slice(0, 3).map(([slot, value]) => `slot ${slot} ${number(value)}`);
    return `${location ? "locked " : ""}row ${row}, column ${column}: ${first.join(", ")}`;
  }

  // ---------- drawing
  /** Draw some of "controls", "pictures", "marks" and "cursor" before the next frame. */
  draw(...what) {
    if (!this.waiting.size) requestAnimationFrame(() => this.drawNow());
    what.forEach((part) => this.waiting.add(part));
  }

  drawNow() {
    const waiting = this.waiting;
    this.waiting = new Set();
    if (this.closing.signal.aborted || !this.picture) return;
    if (waiting.has("controls")) this.drawControls();
    if (waiting.has("pictures")) this.drawPictures();
    if (waiting.has("cursor")) this.drawCursor();
    if (waiting.has("marks")) this.drawMarks(); // last, since it asks for the layout
  }

  /** The picture of an image, once it is decoded and its true segments are inflated. */
  load(image) {
    const { picture: src, segments } = this.data.images[image];
    return this.remember(`picture ${image}`, async () => {
      const picture = Object.assign(new Image(), { src });
      await picture.decode();
      if (segments) this.memory.set(`segments ${image}`, await labelsOf(segments));
      return picture;
    });
  }

  /** Everything of another image, once its picture is decoded. */
  async showImage() {
    const { image } = this.state, picture = await this.load(image);
    if (image !== this.state.image || this.closing.signal.aborted) return;
    const { naturalWidth: width, naturalHeight: height } = picture;
    if (width !== this.picture?.naturalWidth || height !== this.picture?.naturalHeight) this.resize(width, height);
    this.picture = picture;
    if (this.state.location) this.state.point = this.pointOf(this.state.location);
    this.draw("controls", "pictures", "marks", "cursor");
    const { clips } = this.data, { clip, shownClip } = this;
    this.shownClip = clip;
    if (!clips) this.say(`picture ${image + 1} of ${this.data.images.length}: ${this.about.name}`);
    else if (clip !== shownClip) this.say(`clip ${clip + 1} of ${clips.names.length}: ${clips.names[clip]}`);
    else if (!this.timers.frame) this.say(`frame ${this.frameName(this.state.frame)}`);
    if (clips && clip !== shownClip) this.loadAhead(clip);
  }

  /** Load the other frames of a clip, so that they are there when they are asked for. */
  async loadAhead(clip) {
    for (let frame = 0; frame < this.frames && this.clip === clip && !this.closing.signal.aborted; frame++)
      await this.load(clip * this.frames + frame);
  }

  /** After a stream has grown: the last frame shown is the new last one; another stays, as long as it is there. */
  async goOn() {
    const { first, frames } = this.data.clips, { frame } = this.state, from = this.first;
    const now = frame === this.frames - 1 ? frames - 1 : Math.max(frame + from - first, 0);
    if (first > from) this.memory.clear(); // images have other numbers
    Object.assign(this, { first, frames });
    Object.assign(this.state, { image: now, frame: now });
    this.nameTicks(this.tracks.frame, this.frameNames());
    await this.showImage();
    this.drawNow();
  }

  /** Canvases for a picture of so many pixels. */
  resize(width, height) {
    const longest = Math.max(width, height), factor = longest <= 160 ? 3 : 1; // odd: each pixel's centre stays a pixel's centre
    this.runs.forEach((run, index) => {
      const tile = (this.data.runs[index].slots > MANY ? 96 : 128) / longest;
      run.raster = new Raster(width * factor, height * factor);
      run.small = new Raster(Math.max(1, Math.round(width * tile)), Math.max(1, Math.round(height * tile)));
      run.stage.style.maxWidth = `${Math.round(Math.min(640, (600 * width) / height))}px`;
      for (const area of [run.stage, ...run.tiles.map(({ small }) => small)]) area.style.aspectRatio = `${width} / ${height}`;
      Object.assign(run.base, { width: run.raster.width, height: run.raster.height });
      for (const tile of run.tiles) Object.assign(tile.picture, { width: run.small.width, height: run.small.height });
    });
  }

  /** What depends on the room that there is. Called when a size has changed: reading it costs no layout. */
  fit() {
    for (const track of Object.values(this.tracks)) track.width = track.rail.clientWidth;
    for (const run of this.runs)
      for (const [kind, [first, column]] of Object.entries(ROOM))
        run.table.classList.toggle(kind, (run[kind] = run.scroll.clientWidth < first + column * this.stops.length));
    for (const { strip } of this.runs) strip?.fit();
    this.draw("marks", "controls", "cursor");
  }

  /** Show the ticks that have room: first of all where the slider stands, then both ends, then some between. */
  fitTicks({ names, ticks, last, width = 500 }, now) {
    const shown = [], wide = names.map((name) => 10 + 7.4 * name.length), cell = width / Math.max(last, 1);
    const every = Math.ceil(Math.max(...wide.slice(1, -1), 0) / cell), some = ticks.map((_, at) => at).filter((at) => at % every === 0);
    const left = (at) => (at === 0 ? -8 : at === last ? width + 8 - wide[at] : at * cell - wide[at] / 2);
    const apart = (at, other) => left(at) + wide[at] <= left(other) || left(other) + wide[other] <= left(at);
    for (const at of [now, last, 0, ...some]) if (shown.every((other) => other !== at && apart(at, other))) shown.push(at);
    ticks.forEach((tick, at) => {
      tick.classList.toggle("now", at === now);
      tick.hidden = !shown.includes(at);
    });
  }

  drawControls() {
    const { state, parts, about } = this, { width, height } = about, { options } = parts;
    const { clips } = this.data, frame = clips && `frame ${this.frameName(state.frame)} of ${this.frameName(this.frames - 1)} · `;
    write(parts.title, clips?.names[this.clip] ?? about.name);
    const counts = this.data.runs.map((_, run) => this.count(run));
    const scale = Math.round((100 * about.shown[0]) / width);
    const words = [...new Set(counts)].join(" and ") + ` · ${width} × ${height} pixels`;
    const name = this.runs.length === 1 && this.data.runs[0].name ? `${this.data.runs[0].name} · ` : "";
    write(parts.about, name + (frame ?? "") + words + (scale < 100 ? ` · drawn at ${scale} % of its size` : ""));
    parts.views.forEach((one, index) => (one.ariaPressed = `${VIEWS[index].name === state.view}`));
    parts.film.forEach((one, at) => (one.ariaCurrent = `${at === this.clip}`));
    options.reference.hidden = state.view !== "difference";
    options.faded.hidden = state.view !== "segments";
    options.clusters.hidden = !this.data.runs.some((_, run) => this.leaders(run)?.some((leader, slot) => leader !== slot));
    options.numbers.hidden = !["overlay", "segments"].includes(state.view);
    options.truth.hidden = !about.segments;
    options.opacity.hidden = state.opacity[state.view] === null;
    parts.opacity.value = state.opacity[state.view] ?? 1;
    parts.reference.selectedIndex = state.reference;
    for (const field of ["truth", "numbers", "faded", "clusters"]) parts[field].checked = state[field];
    for (const [field, track] of Object.entries(this.tracks)) {
      const now = state[field], plays = field in this.timers, title = TRACKS[field][plays ? "pause" : "play"], { slider, playing } = track;
      slider.value = now;
      slider.ariaValueText = field === "stop" ? this.stopName(now) : field === "step" ? this.stepName(now) : `frame ${this.frameName(now)}`;
      this.fitTicks(track, now);
      if (playing.title !== title) playing.replaceChildren(icon(plays ? "pause" : "play"));
      playing.ariaLabel = playing.title = title;
    }
    this.runs.forEach((run, index) => {
      const chosen = state.chosen[index];
      const { training } = this.data.runs[index];
      const words = [this.stopName(this.stopOf(index, state.stop))];
      if (training) words.push(`training step ${training.steps[this.ownStep(index, state.step)]}`);
      write(run.which, words.join(" · "));
      run.stage.classList.toggle("zoomed", state.seen.size < 1);
      write(run.caption, this.caption(chosen));
      this.drawRamp(run, chosen);
      run.strip?.draw();
      run.heads.forEach((head, stop) => head.classList.toggle("now", stop === state.stop));
      this.fates(index).forEach(({ away, tag, words }, slot) => {
        const { button, tags } = run.tiles[slot], row = run.rows[slot];
        tags.forEach((one, place) => write(one, place ? (away ? tag.replace(/merged|left out/, "out") : "") : tag)); // rows have little room
        button.ariaPressed = `${chosen === slot}`;
        button.ariaLabel = `slot ${slot}${words && `, ${words}`}: show it alone`;
        for (const element of [button, row]) element.classList.toggle("merged", away), (element.title = words);
      });
      this.dye(run, this.paints(index));
    });
  }

  /** Give tiles and rows their slots' colours. */
  dye(run, paints) {
    if (run.dyed === paints) return;
    run.dyed = paints;
    paints.forEach((colour, slot) => {
      for (const element of [run.rows[slot], run.tiles[slot].button]) {
        element.style.setProperty("--slot", `rgb(${colour})`);
        element.style.setProperty("--on-slot", inkOn(colour));
      }
    });
  }

  caption(slot) {
    const { view, faded, reference } = this.state, text = CAPTIONS[view][slot === null ? 0 : 1];
    const fades = view === "segments" && faded ? " It fades where slots are undecided (entropy)." : "";
    return text.replace("#", slot).replace("@", this.stopName(reference)) + fades;
  }

  drawRamp(run, slot) {
    const { view } = this.state, signed = view === "difference" && slot !== null, strip = make("i");
    run.ramp.hidden = view !== "heat" && view !== "difference";
    if (run.ramp.hidden || run.ramp.textContent.startsWith(signed ? "−" : "0")) return;
    const sequential = [0, 51, 102, 153, 204, 255].map((at) => this.scale.subarray(3 * at, 3 * at + 3));
    const colours = signed ? [LOST, [160, 160, 160], GAINED] : sequential;
    strip.style.background = `linear-gradient(to right, ${colours.map((colour) => `rgb(${colour})`)})`;
    run.ramp.replaceChildren(signed ? "−1" : "0", strip, "1");
  }

  /** The stage and the tiles of every run: what changes with an iteration. */
  drawPictures() {
    const { dark, picture, state } = this, host = this.root.getRootNode().host;
    this.root.classList.toggle("dark", dark);
    if (host?.dataset.page) document.documentElement.style.colorScheme = dark ? "dark" : "light";
    this.runs.forEach((run, index) => {
      const scene = this.scene(index);
      for (const raster of [run.raster, run.small]) raster.look(picture, state.seen);
      run.base.getContext("2d").putImageData(run.raster.paint(scene, state.chosen[index]), 0, 0);
      run.tiles.forEach((tile, slot) => tile.picture.getContext("2d").putImageData(run.small.paint(scene, slot), 0, 0));
    });
  }

  /** What Raster.paint needs of a run. */
  scene(run) {
    const { view, faded, stop, reference, opacity } = this.state, paper = this.dark ? [20, 23, 27] : [255, 255, 255];
    const other = reference < this.stops.length ? this.maps(run, reference) : this.maps(run, stop, 0);
    return { view, faded, paper, other, maps: this.maps(run, stop), colours: this.paints(run), scale: this.scale, opacity: opacity[view] };
  }

  drawMarks() {
    this.runs.forEach((run, index) => {
      const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = run.stage;
      const [width, height] = [clientWidth, clientHeight].map((length) => Math.round(length * ratio));
      const pen = run.marks.getContext("2d");
      if (run.marks.width !== width || run.marks.height !== height) Object.assign(run.marks, { width, height });
      else pen.clearRect(0, 0, width, height);
      this.mark(pen, index, width, height, ratio);
    });
  }

  /** True outlines and slot numbers on a canvas of any size; `ratio` is that of its pixels to the stage's. */
  mark(pen, run, width, height, ratio) {
    const { truth, numbers, view, chosen, stop, seen } = this.state;
    if (truth && this.segments) {
      const { width: columns, height: rows } = this.about.segments;
      const across = width / columns / seen.size, down = height / rows / seen.size;
      const outlines = this.remember(`outlines ${this.state.image}`, () => outlinesOf(this.segments, columns, rows));
      pen.save();
      pen.transform(across, 0, 0, down, -seen.x * columns * across, -seen.y * rows * down);
      for (const [strokeStyle, thickness] of [["rgba(0, 0, 0, .75)", 3.4], ["#fff", 1.5]]) {
        Object.assign(pen, { strokeStyle, lineWidth: (thickness * ratio) / across, lineCap: "round" });
        pen.stroke(outlines);
      }
      pen.restore();
    }
    if (!numbers || chosen[run] !== null || !["overlay", "segments"].includes(view)) return;
    const maps = this.maps(run, stop);
    const font = `650 ${12 * ratio}px system-ui, sans-serif`;
    Object.assign(pen, { font, textAlign: "center", textBaseline: "middle", lineWidth: 1.5 * ratio, strokeStyle: "#fff" });
    maps.anchors.forEach((cell, slot) => {
      if (!cell) return;
      const [left, top, wide, high] = this.box(maps, cell), x = (left + wide / 2) * width, y = (top + high / 2) * height;
      const colour = this.paints(run)[slot], half = (slot > 9 ? 13 : 10) * ratio;
      pen.beginPath();
      pen.roundRect(x - half, y - 10 * ratio, 2 * half, 20 * ratio, 10 * ratio);
      pen.fillStyle = `rgb(${colour})`;
      pen.fill();
      pen.stroke();
      pen.fillStyle = inkOn(colour);
      pen.fillText(`${slot}`, x, y + 0.5 * ratio);
    });
  }

  drawCursor() {
    const { point, location, stop } = this.state, { width, height } = this.about;
    this.root.classList.toggle("locked", location !== null);
    this.runs.forEach((run, index) => {
      const maps = this.maps(index, stop), cell = point && maps.cell(point), box = point && this.box(maps, cell);
      for (const cursor of [run.cursor, ...run.tiles.map((tile) => tile.cursor)]) {
        cursor.hidden = !point;
        if (box) ["left", "top", "width", "height"].forEach((side, i) => (cursor.style[side] = `${100 * box[i]}%`));
      }
      const where = point && [`pixel ${Math.floor(point.x * width)}, ${Math.floor(point.y * height)}`, this.trueLabel(point)];
      if (location) where.push("locked: click or Esc frees");
      const place = point && `Row ${cell[0]}, column ${cell[1]} of ${maps.height} × ${maps.width}`;
      write(run.where, place ?? "Share of the whole picture");
      write(run.detail, where?.filter(Boolean).join(" · ") ?? "Hover to read a place, click to lock it.");
      this.stops.forEach((_, at) => {
        const maps = this.maps(index, at), values = run.tiles.map((_, slot) => maps.read(slot, point));
        const largest = Math.max(...values);
        values.forEach((value, slot) => {
          const td = run.cells[slot][at];
          td.classList.toggle("now", at === stop);
          if (at === stop) write(run.tiles[slot].value, number(value));
          write(td, run.tight ? number(value).replace(/^0/, "") : number(value));
          if (td.dataset.value === `${value}`) return;
          td.dataset.value = value;
          td.style.setProperty("--share", value);
        });
        values.forEach((value, slot) => run.cells[slot][at].classList.toggle("largest", value === largest));
      });
    });
  }

  trueLabel({ x, y }) {
    if (!this.segments) return "";
    const { width, height } = this.about.segments, label = this.segments[Math.floor(y * height) * width + Math.floor(x * width)];
    return `true: ${SPECIAL[label] ?? `segment ${label}`}`;
  }

  // ---------- copy
  /** The stages with marks, cursor and a line of text, on one canvas, at least `least` pixels wide, if given. */
  print(least = 0) {
    const { width, height } = this.picture, { point, stop, view, chosen, seen } = this.state, count = this.runs.length;
    const wide = Math.max(width * Math.max(1, Math.ceil(900 / width)), Math.ceil((least + 24) / count) - 24);
    const high = Math.round((wide * height) / width), text = Math.max(1, Math.round(wide / 1000));
    const sheet = canvas(count * (wide + 24) - 24, high + 56 * text), pen = sheet.getContext("2d");
    const [ink, paper] = this.dark ? ["#e8eaed", "#14171b"] : ["#1b1f24", "#fff"], unit = wide / this.runs[0].stage.clientWidth;
    Object.assign(pen, { fillStyle: paper, imageSmoothingQuality: "high" });
    pen.fillRect(0, 0, sheet.width, sheet.height);
    this.runs.forEach((run, index) => {
      const marks = canvas(wide, high), maps = this.maps(index, stop), slot = chosen[index];
      this.mark(marks.getContext("2d"), index, wide, high, unit);
      let base = run.base;
      if (least) { // painted anew: maps are smooth at any size
        const raster = new Raster(wide, high);
        base = canvas(wide, high);
        raster.look(this.picture, seen);
        base.getContext("2d").putImageData(raster.paint(this.scene(index), slot), 0, 0);
      }
      pen.drawImage(base, 0, 0, wide, high);
      pen.drawImage(marks, 0, 0);
      if (point) {
        const [left, top, across, down] = this.box(maps, maps.cell(point));
        for (const [strokeStyle, thickness] of [["#000", 4], ["#fff", 2]]) {
          Object.assign(pen, { strokeStyle, lineWidth: thickness * unit });
          pen.strokeRect(left * wide, top * high, across * wide, down * high);
        }
      }
      const name = this.runs.length > 1 ? this.data.runs[index].name : "";
      const words = [this.shown, name, run.which.textContent, view];
      if (slot !== null) words.push(`slot ${slot}`);
      Object.assign(pen, { fillStyle: ink, font: `${22 * text}px system-ui, sans-serif`, textBaseline: "middle" });
      pen.fillText(words.filter(Boolean).join(" · "), 0, high + 32 * text, wide);
      pen.translate(wide + 24, 0);
    });
    return sheet;
  }

  save(blob, download) {
    const link = make("a", { href: URL.createObjectURL(blob), download });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  /** The picture's name; of a clip, its own and the frame's number. */
  get shown() {
    const { clips } = this.data;
    return clips ? `${clips.names[this.clip]} frame ${this.frameName(this.state.frame)}` : this.about.name;
  }

  fileName(words, kind) { return `${words.join(" ").replace(/[^\w.-]+/g, "-").slice(0, 80)}.${kind}`; }

  savePrint() {
    const name = this.fileName([this.shown, this.stopName(this.state.stop), this.state.view], "png");
    this.print(PRINT_WIDTH).toBlob((blob) => {
      this.save(blob, name);
      this.notify(`saved as ${name}`);
    }, "image/png");
  }

  async copy() {
    const blob = new Promise((done) => this.print().toBlob(done, "image/png"));
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
      this.notify("copied as PNG");
    } catch {
      this.save(await blob, "attention.png");
      this.notify("the clipboard is closed here: saved as attention.png");
    }
  }
}

/** The border lines between labels as one path, in pixels of the label map. */
function outlinesOf(labels, width, height) {
  const path = new Path2D();
  for (const [right, down] of [[1, 0], [0, 1]])
    for (let y = 0; y + down < height; y++)
      for (let x = 0; x + right < width; x++)
        if (labels[y * width + x] !== labels[(y + down) * width + x + right]) {
          path.moveTo(x + right, y + down);
          path.lineTo(x + 1, y + 1);
        }
  return path;
}

function render({ model, el }) {
  const shadow = el.attachShadow({ mode: "open" }), sheet = new CSSStyleSheet();
  shadow.adoptedStyleSheets = [sheet];
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own shortcuts
  const renew = () => { // other data, the same look; at the last training step it goes on with the training
    const before = el.explorer, { dark, opacity, numbers, truth, faded, clusters } = before?.state ?? {};
    if (!model.get("data").style) return; // a stream before its first frame
    sheet.replaceSync(model.get("data").style);
    before?.close();
    el.explorer = new Explorer(model, shadow);
    if (!before) return;
    Object.assign(el.explorer.state, { dark, opacity, numbers, truth, faded, clusters });
    if (before.state.step === before.steps.length - 1) el.explorer.set({ step: el.explorer.stepAt(null) });
  };
  renew();
  model.on("change:data", renew);
  model.on("change:latest", () => el.explorer?.incoming.add(model.get("latest")));
  return () => el.explorer?.close();
}

export default { render };
