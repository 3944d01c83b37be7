// Clips in the explorer: the strip of what happens to slots from frame to frame, films, and streams that go on.
// Part of explorer.js's module: explorer.py puts this text after it.

const FILM_TYPES = ["video/webm;codecs=vp9", "video/webm", "video/mp4"];
const FILM_WIDTH = 1280; // pixels, at most
const BAND = 13; // pixels of the marks' bands above and below the areas

/** Under a run's picture: each slot's share of it over the frames as stacked areas, the frame shown, and marks where identity
 *  switches happen (above) and where slots are merged away or revived (below). A click or a drag moves to a frame. */
class Strip {
  constructor(explorer, run) {
    Object.assign(this, { explorer, run, canvas: canvas(), words: make("p.story"), width: 0 });
    this.bar = make(".strip", { role: "img" }, this.canvas);
    this.element = make(".over-time", {}, this.bar, this.words);
    const go = (event) => explorer.set({ frame: this.frameAt(event) });
    this.bar.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.bar.setPointerCapture(event.pointerId);
      go(event);
    });
    this.bar.addEventListener("pointermove", (event) => (event.buttons ? go(event) : (this.bar.title = this.describe(this.frameAt(event)))));
  }

  frameAt(event) {
    const { left, width } = this.bar.getBoundingClientRect(), { frames } = this.explorer;
    return clamp(Math.floor(((event.clientX - left) / width) * frames), 0, frames - 1);
  }

  /** Called when the size has changed: reading it then costs no layout. */
  fit() { Object.assign(this, { width: this.bar.clientWidth, height: this.bar.clientHeight }); }

  /** The shares [F][N] of the clip shown at its stop, and what happens in it: [frame, ...] each, frames from 0 in the clip. */
  get told() {
    const { explorer, run } = this, { story, attention } = explorer.data.runs[run], which = explorer.stopOf(run, explorer.state.stop);
    const stop = which === "decoder" ? attention.stops : which, first = explorer.clip * explorer.frames, last = first + explorer.frames;
    const here = (events) => events?.filter(([at]) => first <= at && at < last).map(([at, ...what]) => [at - first, ...what]);
    return { shares: story.shares[stop].slice(first, last), switches: here(story.switches?.[stop]),
      merged: here(story.merged), revived: here(story.revived) };
  }

  /** The slots' own colours, which are those of the whole clip; a cluster's differ from frame to frame. */
  get paints() {
    const { explorer, run } = this, { slots, colours } = explorer.data.runs[run], own = colours?.[explorer.state.image];
    return Array.from({ length: slots }, (_, slot) => explorer.colours[(own?.[slot] ?? slot) % explorer.colours.length]);
  }

  /** What a frame has, in words. */
  describe(frame) {
    const { shares, switches, merged, revived } = this.told, of = (events) => (events ?? []).filter(([at]) => at === frame);
    const slot = this.explorer.state.chosen[this.run], words = [`frame ${this.explorer.frameName(frame)}`];
    if (slot !== null) words.push(`slot ${slot} has ${number(shares[frame][slot])}`);
    for (const [, object, before, now] of of(switches)) words.push(`object ${object} goes from slot ${before} to slot ${now}`);
    for (const [, slot, into] of of(merged)) words.push(`slot ${slot} is merged ${into === null ? "away" : `into slot ${into}`}`);
    for (const [, slot] of of(revived)) words.push(`slot ${slot} is revived`);
    return words.join("; ");
  }

  /** What happens in the whole clip, in words. */
  get summary() {
    const { switches, merged, revived } = this.told, words = [], name = ([frame]) => this.explorer.frameName(frame), most = 8;
    const places = (events) => {
      const found = [...new Set(events.map(name))], several = found.length > 1 ? "s" : "";
      return `frame${several} ${found.slice(0, most).join(", ")}${found.length > most ? ", …" : ""}`;
    };
    const slots = (events) => (events.length > 1 ? `${events.length} slots` : `slot ${events[0][1]}`);
    const count = switches?.length, plural = count === 1 ? "" : "es";
    if (switches) words.push(`◆ ${count || "no"} identity switch${plural}${count ? ` (${places(switches)})` : ""}`);
    if (merged.length) words.push(`▼ ${slots(merged)} merged (${places(merged)})`);
    if (revived.length) words.push(`▲ ${slots(revived)} revived (${places(revived)})`);
    return words.join(" · ");
  }

  draw() {
    const { explorer, run, width, height } = this, { frames, state } = explorer, ratio = window.devicePixelRatio || 1;
    this.element.hidden = explorer.earlier(run, state.step) >= 0; // it tells of the last training step
    if (this.element.hidden || !width) return;
    const { shares, switches, merged, revived } = this.told, paints = this.paints, chosen = state.chosen[run];
    const size = [width, height].map((length) => Math.round(length * ratio)), pen = this.canvas.getContext("2d");
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const cell = width / frames, middle = (frame) => (frame + 0.5) * cell, high = height - 2 * BAND;
    const columns = [[0, 0], ...shares.map((_, frame) => [middle(frame), frame]), [width, frames - 1]]; // flat at both ends
    const y = (share) => BAND + high * (1 - Math.min(share, 1));
    let below = shares.map(() => 0);
    paints.forEach((colour, slot) => {
      const above = below.map((share, frame) => share + shares[frame][slot]);
      pen.beginPath();
      for (const [x, frame] of columns) pen.lineTo(x, y(above[frame]));
      for (const [x, frame] of columns.toReversed()) pen.lineTo(x, y(below[frame]));
      pen.globalAlpha = chosen === null || chosen === slot ? 1 : 0.22;
      pen.fillStyle = `rgb(${colour})`;
      pen.fill();
      below = above;
    });
    pen.globalAlpha = 1;
    const [ink, paper] = explorer.dark ? ["#e8eaed", "#14171b"] : ["#1b1f24", "#fff"];
    pen.strokeStyle = ink;
    this.mark(pen, switches ?? [], 6, ([, , before, now], x, y) => // a diamond, half of it in the colour before
      [[[x, y - 5], [x - 5, y], [x, y + 5], paints[before]], [[x, y - 5], [x + 5, y], [x, y + 5], paints[now]]]);
    this.mark(pen, merged, height - 6, ([, slot], x, y) => [[[x - 5, y - 4], [x + 5, y - 4], [x, y + 4], paints[slot]]]);
    this.mark(pen, revived, height - 6, ([, slot], x, y) => [[[x - 5, y + 4], [x + 5, y + 4], [x, y - 4], paints[slot]]]);
    const wide = Math.max(cell, 3), left = clamp(middle(state.frame) - wide / 2, 1.5, width - wide - 1.5);
    for (const [strokeStyle, lineWidth] of [[paper, 4], [ink, 2]]) {
      Object.assign(pen, { strokeStyle, lineWidth });
      pen.strokeRect(left, BAND - 0.5, wide, high + 1);
    }
    write(this.words, this.summary);
    this.bar.ariaLabel = `each slot’s share over the frames; ${this.describe(state.frame)}`;
  }

  /** Triangles [point, point, point, colour] of events around height y; those of one frame stand side by side. */
  mark(pen, events, y, triangles) {
    const { width } = this, cell = width / this.explorer.frames, many = Map.groupBy(events, ([frame]) => frame);
    Object.assign(pen, { lineWidth: 1, lineJoin: "round" });
    for (const [frame, here] of many)
      here.forEach((event, place) => {
        const apart = Math.min(11, Math.max(cell / here.length, 3)), x = (frame + 0.5) * cell + (place - (here.length - 1) / 2) * apart;
        for (const [a, b, c, colour] of triangles(event, clamp(x, 6, width - 6), y)) {
          pen.beginPath();
          for (const point of [a, b, c]) pen.lineTo(...point);
          pen.closePath();
          pen.fillStyle = `rgb(${colour})`;
          pen.fill();
          pen.stroke();
        }
      });
  }
}

// ---------------------------------------------------------------- films
const filmType = () => window.MediaRecorder && FILM_TYPES.find((type) => MediaRecorder.isTypeSupported(type));

function filmButton(explorer) {
  const title = filmType() ? "Save a film (v)" : "This browser records no films (it has no MediaRecorder); in Python: viz.film(trace).save('x.gif')";
  return Object.assign(iconButton("film", title, () => saveFilm(explorer)), { disabled: !filmType() });
}

/** Save the frames of the clip in their order, as the page shows them now, at the pace at which it plays them. */
async function saveFilm(explorer) {
  const { state, frames, data, clip } = explorer, type = filmType(), [at, name] = [state.frame, data.clips.names[clip]];
  if (!type || explorer.filming) return;
  explorer.filming = true;
  explorer.notify(`records ${frames} frames …`);
  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  let recorder, sheet, pen, parts = [];
  try {
    if ("frame" in explorer.timers) explorer.play("frame");
    for (let frame = 0; frame < frames && explorer.clip === clip && !explorer.closing.signal.aborted; frame++) {
      await explorer.set({ frame });
      explorer.drawNow();
      const print = explorer.print(), scale = Math.min(1, FILM_WIDTH / print.width);
      if (!recorder) {
        sheet = canvas(...[print.width, print.height].map((length) => 2 * Math.ceil((length * scale) / 2))); // encoders want even sides
        pen = Object.assign(sheet.getContext("2d"), { imageSmoothingQuality: "high" });
        recorder = new MediaRecorder(sheet.captureStream(30), { mimeType: type, videoBitsPerSecond: 6_000_000 });
        recorder.ondataavailable = (event) => parts.push(event.data);
        recorder.start();
      }
      pen.drawImage(print, 0, 0, sheet.width, sheet.height);
      await wait(TRACKS.frame.pace);
    }
    pen.drawImage(sheet, 0, 0); // the last one lasts as long as the others
    await wait(TRACKS.frame.pace / 2);
    const done = new Promise((stopped) => (recorder.onstop = stopped));
    recorder.stop();
    await done;
    const file = explorer.fileName([name, state.view], type.includes("mp4") ? "mp4" : "webm");
    explorer.save(new Blob(parts, { type: type.split(";")[0] }), file);
    explorer.notify(`saved as ${file}`);
  } catch (error) {
    explorer.notify(`no film: ${error.message}`);
  } finally {
    explorer.filming = false;
    if (!explorer.closing.signal.aborted) explorer.set({ frame: Math.min(at, explorer.frames - 1) });
  }
}

// ---------------------------------------------------------------- streams
/** Frames that come one by one. They are shown as fast as they can be drawn; those in between are kept all the same. */
class Incoming {
  constructor(explorer) { Object.assign(this, { explorer, queue: [] }); }

  async add(latest) {
    this.queue.push(latest);
    if (this.busy) return;
    this.busy = true;
    while (this.queue.length && !this.explorer.closing.signal.aborted) {
      for (const one of this.queue.splice(0)) extend(this.explorer.data, one);
      await this.explorer.goOn();
      await new Promise((done) => setTimeout(done)); // clicks and keys come in between
    }
    this.busy = false;
  }
}

/** Add a frame to a stream's data in place, and drop the first of more than `window`. A frame that is known already is left alone;
 *  where some are missing, since they came before there was anybody to hear of them, the window begins anew. */
function extend({ clips, images, runs: [run] }, { number: at, window, image, keep, attention, shares, merged, revived }) {
  const { story } = run, lists = [images, run.keep, run.attention.images, ...story.shares], next = clips.first + clips.frames;
  const drop = (events) => events.map(([frame, ...what]) => [frame - 1, ...what]).filter(([frame]) => frame >= 0);
  if (at < next) return;
  if (at > next) {
    lists.forEach((list) => (list.length = 0));
    Object.assign(story, { merged: [], revived: [] });
    Object.assign(clips, { first: at, frames: 0 });
  }
  images.push(image);
  run.keep.push(keep);
  run.attention.images.push(attention);
  story.shares.forEach((frames, stop) => frames.push(shares[stop]));
  merged.forEach((slot) => story.merged.push([clips.frames, slot, null]));
  revived.forEach((slot) => story.revived.push([clips.frames, slot]));
  clips.frames += 1;
  if (clips.frames <= window) return;
  lists.forEach((list) => list.shift());
  Object.assign(story, { merged: drop(story.merged), revived: drop(story.revived) });
  clips.first += 1;
  clips.frames -= 1;
}

/** Ends the loop in the cell: by its `stopped`, or, where the kernel hears no widget while a cell runs, as its own button does. */
function stopButton(explorer) {
  const { model } = explorer, words = make("span"), stop = button("stop", {}, icon("stop"), words);
  const tell = () => {
    stop.disabled = !model.get("running");
    write(words, stop.disabled ? "stopped" : "stop");
  };
  stop.onclick = () => {
    model.set("stopped", true);
    model.save_changes();
    stop.disabled = true;
    write(words, "stops …");
    setTimeout(() => model.get("running") && model.widget_manager?.kernel?.interrupt(), 500);
  };
  model.on("change:running", tell);
  explorer.closing.signal.addEventListener("abort", () => model.off("change:running", tell));
  tell();
  return stop;
}
