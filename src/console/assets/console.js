// The overview: draws the last 15 minutes of four lanes, and puts in the pieces of the page that the server sends again
// every second. Nothing here knows what a piece says.
"use strict";

const SECONDS = 900;
const SVG = "http://www.w3.org/2000/svg";

/** How a lane is drawn: the smallest top of its scale, and how a value is read. */
const LANES = {
  tokens: { least: 10, curves: 1, read: ([v]) => `${Math.round(v)} tokens/s`, top: (v) => `${Math.round(v)}` },
  requests: { least: 4, curves: 2, read: ([r, q]) => `${r} running, ${q} queued`, top: (v) => `${v}` },
  kv: { least: 100, curves: 1, read: ([v]) => `${v.toFixed(0)} %`, top: (v) => `${v} %` },
  first: { least: 10, curves: 1, read: ([v]) => (v == null ? "no requests" : time(v)), top: time },
};

function time(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

/** The charts' widths in seconds: a young server does not draw a quarter of an hour of nothing. */
const SPANS = {
  90: ["90 s ago", "60", "30", "now"],
  180: ["3 min ago", "2", "1", "now"],
  900: ["15 min ago", "10", "5", "now"],
};

/** The next of 1, 2, 5, 10, 20, 50, … */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value * 0.999);
}

class Strip {
  constructor(place, name) {
    this.lane = LANES[name];
    this.rows = [];
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${SECONDS} 100`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true");
    for (const y of [20, 60]) this.add("line", "grid", { x1: 0, x2: SECONDS, y1: y, y2: y });
    for (const x of [300, 600]) this.add("line", "grid", { x1: x, x2: x, y1: 0, y2: 100 });
    this.area = this.add("path", "area");
    this.second = this.lane.curves > 1 ? this.add("path", "curve second") : null;
    this.curve = this.add("path", "curve");
    this.cross = this.add("line", "cross", { y1: 0, y2: 100, visibility: "hidden" });
    this.top = document.createElement("span");
    this.top.className = "top";
    this.label = document.createElement("span");
    this.label.className = "read";
    this.label.hidden = true;
    place.replaceChildren(this.svg, this.top, this.label);
  }

  add(kind, style, attributes = {}) {
    const element = document.createElementNS(SVG, kind);
    element.setAttribute("class", style);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    this.svg.append(element);
    return element;
  }

  push(row) {
    this.rows.push(row);
    if (this.rows.length > SECONDS) this.rows.shift();
  }

  draw() {
    const highest = Math.max(this.lane.least, ...this.rows.flat().filter((v) => v != null));
    const top = round(highest);
    // A fifth of the lane stays free for what is written there.
    const y = (value) => (100 - (value / top) * 80).toFixed(1);
    this.span = Number(Object.keys(SPANS).find((span) => span >= this.rows.length) ?? SECONDS);
    const wide = SECONDS / this.span;
    const x = (i) => ((this.span - this.rows.length + i + 0.5) * wide).toFixed(1);
    const path = (at) => {
      let text = "";
      let gap = true;
      this.rows.forEach((row, i) => {
        if (row[at] == null) gap = true;
        else {
          text += `${gap ? "M" : "L"}${x(i)} ${y(row[at])}`;
          gap = false;
        }
      });
      return text;
    };
    this.curve.setAttribute("d", path(0));
    if (this.second) this.second.setAttribute("d", path(1));
    // The area has no gaps: what is not there is nought.
    const ground = this.rows.map((row, i) => `L${x(i)} ${y(row[0] ?? 0)}`).join("");
    this.area.setAttribute("d", this.rows.length ? `M${x(0)} 100${ground}L${x(this.rows.length - 1)} 100Z` : "");
    this.top.textContent = this.lane.top(top);
  }

  /** Reads the value at a share of the width; none ends it. */
  point(share) {
    const at = share == null ? -1 : Math.floor(share * this.span) - (this.span - this.rows.length);
    const row = this.rows[at];
    this.label.hidden = share == null;
    this.cross.setAttribute("visibility", share == null ? "hidden" : "visible");
    if (share == null) return;
    const x = (Math.floor(share * this.span) + 0.5) * (SECONDS / this.span);
    this.cross.setAttribute("x1", x);
    this.cross.setAttribute("x2", x);
    const ago = Math.round(this.span - share * this.span);
    const when = ago < 60 ? `${ago} s ago` : `${Math.floor(ago / 60)} min ${ago % 60} s ago`;
    this.label.textContent = row ? `${this.lane.read(row)}, ${when}` : `nothing kept, ${when}`;
  }
}

/** What stands under the lanes. */
function label() {
  const words = SPANS[strips.tokens.span];
  document.querySelectorAll(".axis span").forEach((place, i) => (place.textContent = words[i]));
}

const strips = {};
for (const place of document.querySelectorAll("[data-strip]")) {
  strips[place.dataset.strip] = new Strip(place, place.dataset.strip);
}

// One pointer reads all four lanes at the same moment.
const lanes = document.querySelector(".lanes");
lanes.addEventListener("pointermove", (event) => {
  const box = document.querySelector("[data-strip] svg").getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  const inside = share >= 0 && share < 1;
  for (const strip of Object.values(strips)) strip.point(inside ? share : null);
});
lanes.addEventListener("pointerleave", () => {
  for (const strip of Object.values(strips)) strip.point(null);
});

const shown = new Map();

/** Puts in what changed; what somebody is selecting text in waits. */
function put(pieces) {
  const selection = document.getSelection();
  for (const [name, text] of Object.entries(pieces)) {
    const place = document.querySelector(`[data-live="${name}"]`);
    if (!place || shown.get(name) === text) continue;
    if (selection && !selection.isCollapsed && place.contains(selection.anchorNode)) continue;
    place.innerHTML = text;
    shown.set(name, text);
  }
}

async function begin() {
  const answer = await fetch("/admin/history");
  if (!answer.ok) return location.assign("/login");
  const past = await answer.json();
  past.tokens_per_s.forEach((tokens, i) => {
    strips.tokens.push([tokens]);
    strips.requests.push([past.running[i], past.waiting[i]]);
    strips.kv.push([past.kv_ratio[i] * 100]);
    strips.first.push([past.first_token_ms[i]]);
  });
  for (const strip of Object.values(strips)) strip.draw();
  label();

  const events = new EventSource("/stream");
  let lost = null;
  events.onmessage = (event) => {
    if (lost) lost.remove();
    lost = null;
    const now = JSON.parse(event.data);
    put(now.pieces);
    for (const [name, strip] of Object.entries(strips)) {
      strip.push(now[name]);
      strip.draw();
    }
    label();
    document.documentElement.dataset.ticks = Number(document.documentElement.dataset.ticks ?? 0) + 1;
  };
  events.onerror = () => {
    // The browser tries again, unless it was sent to the door.
    if (events.readyState === EventSource.CLOSED) return location.assign("/login");
    if (lost) return;
    lost = document.createElement("p");
    lost.className = "banner fail";
    lost.textContent = "The server does not answer; trying again. What is shown below is old.";
    document.querySelector("main").prepend(lost);
  };
}

begin();
