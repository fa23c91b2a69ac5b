"use strict";
// The page of a run's trace. What the run says is untrusted: it gets onto the page through `words` alone, as text, never as markup.

// ---- Elements and text

const $ = (id) => document.getElementById(id);

// Controls, invisible characters and those that turn the direction of writing. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
const ODD = /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]+)/;

/** Text nodes for untrusted text; odd characters stand in a box of their own, which names them and beyond which they turn nothing. */
function words(text) {
  return String(text).split(ODD).filter(Boolean).map((part) => {
    if (!ODD.test(part)) return document.createTextNode(part);
    const box = document.createElement("span");
    box.className = "odd";
    box.dataset.code = "U+" + part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + (part.length > 1 ? "…" : "");
    box.textContent = part;
    return box;
  });
}

/** Untrusted text where there is no room for boxes: in titles. */
const plain = (text) => String(text).split(ODD).map((part, place) => (place % 2 ? "·" : part)).join("");

function make(tag, given, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given ?? {})) {
    if (name === "click") node.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...inside.flat(3).filter((part) => part !== null && part !== undefined && part !== false)
    .flatMap((part) => (part instanceof Node ? [part] : words(part))));
  return node;
}

// ---- Numbers in words

const counted = (number, noun, plural) => `${whole(number)} ${number === 1 ? noun : plural ?? noun + "s"}`;
const whole = (number) => (number ?? 0).toLocaleString("en-US");
const usd = (cost) => (cost === null || cost === undefined ? "unknown" : cost ? `$${cost.toFixed(cost < 0.1 ? 4 : 2)}` : "$0");
const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`);

function duration(seconds) {
  if (seconds < 0.9995) return `${seconds < 0.00995 ? +(seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
  if (seconds < 59.995) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60), rest = Math.round(seconds) % 60;
  const pad = (number) => String(number).padStart(2, "0");
  return minutes < 60 ? `${minutes} min ${pad(rest)} s` : `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
}

/** A point of time on an axis whose marks are `step` seconds apart. */
function moment(at, step) {
  const digits = step >= 1 ? 0 : Math.min(4, Math.ceil(-Math.log10(step) - 1e-9)), rounded = Number(at.toFixed(digits));
  if (rounded >= 60) return `${Math.floor(rounded / 60)}:${(rounded % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0")}`;
  if (step < 0.1 && at < 1) return `${+(at * 1000).toFixed(step < 0.001 ? 2 : 0)} ms`;
  return `${at.toFixed(digits)} s`;
}

function date(seconds) {
  const day = new Date(seconds * 1000 - new Date(seconds * 1000).getTimezoneOffset() * 60000);
  return day.toISOString().slice(0, 19).replace("T", " ");
}

// ---- The data

async function inflated(id) {
  const text = atob($(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) bytes[place] = text.charCodeAt(place);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

let facts, spans, tree, total, branches;
let bodies = null; // what is inflated only when somebody asks for it
const critical = new Map(); // span -> its pieces of the critical path

function readSpans(columns) {
  const time = (name, at) => (columns[name][at] === null ? null : (columns.start[at] + columns[name][at]) / 10000);
  spans = columns.parent.map((_, at) => {
    const span = { at, children: [], depth: 0, size: 0, start: columns.start[at] / 10000 };
    for (const name of ["kind", "name", "role", "branch", "model", "state", "error"]) span[name] = columns.words[columns[name][at]];
    for (const name of ["attempt", "input_tokens", "output_tokens", "cost_usd"]) span[name] = columns[name][at];
    for (const name of ["sent", "first", "end"]) span[name] = time(name, at);
    return span;
  });
  total = spans.reduce((last, span) => Math.max(last, span.end ?? span.start), Math.max(facts.seconds, 1e-3));
  for (const span of spans) {
    span.parent = spans[columns.parent[span.at]] ?? null; // parents come before their children
    span.parent?.children.push(span);
    span.depth = span.parent ? span.parent.depth + 1 : 0;
    span.until = span.end ?? total; // what has no end lasts as long as the trace
    span.waited = Math.max(0, (span.sent ?? span.start) - span.start);
  }
  for (const span of [...spans].reverse()) if (span.parent) span.parent.size += span.size + 1;
  for (const [at, from, to, what] of facts.critical) critical.set(spans[at], [...(critical.get(spans[at]) ?? []), { from, to, what }]);
  growTree();
}

/** All spans as the rows stand, each before those inside it. */
function growTree() {
  tree = [];
  const waiting = spans.filter((span) => !span.parent).reverse();
  while (waiting.length) {
    const span = waiting.pop();
    span.place = tree.push(span) - 1;
    for (const child of [...span.children].reverse()) waiting.push(child);
  }
  branches = spans.filter((span) => span.kind === "branch");
}

let loading = null;
function loadBodies() {
  loading ??= (async () => {
    if (document.readyState === "loading") await new Promise((done) => document.addEventListener("DOMContentLoaded", done));
    const read = await inflated("bodies-data");
    bodies = { ...read, joined: new Map() };
  })();
  return loading;
}

/** Text n, put together from its blocks once. */
function textOf(number) {
  if (!bodies.joined.has(number)) bodies.joined.set(number, bodies.texts[number].map((block) => bodies.blocks[block]).join(""));
  return bodies.joined.get(number);
}

/** A value as the run had it; `_Texts` in page.py says how it is packed. */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if ("t" in value) return textOf(value.t);
  if ("w" in value) return bodies.blocks[value.w[0]].slice(value.w[1], value.w[2]);
  return Object.fromEntries(Object.entries(value.m).map(([name, inner]) => [name, unpacked(inner)]));
}

/** Whether a packed value holds the words; `known` remembers the texts that were looked at. */
function holds(value, sought, known) {
  if (typeof value === "string") return value.toLowerCase().includes(sought);
  if (Array.isArray(value)) return value.some((inner) => holds(inner, sought, known));
  if (value === null || typeof value !== "object") return false;
  if ("m" in value) return Object.values(value.m).some((inner) => holds(inner, sought, known));
  if (!known.has(value.t)) known.set(value.t, textOf(value.t).toLowerCase().includes(sought));
  return known.get(value.t);
}

// ---- Colours

const ROLES = 6;
let roles = [];

function colour(span) {
  if (span.state === "failed" || span.state === "lost") return "var(--bad)";
  if (span.state === "cancelled") return "var(--idle)";
  if (span.kind === "model") return roleColour(span.role);
  if (span.kind === "tool") return "var(--tool)";
  return span.kind === "retriever" || span.kind === "documents" ? "var(--documents)" : "var(--group)";
}

const roleColour = (role) => `var(--role-${Math.max(0, roles.indexOf(role)) % ROLES})`;
const WHATS = { "waiting for a turn": "var(--idle)", model: "var(--role-0)", tool: "var(--tool)", documents: "var(--documents)" };
const whatColour = (what) => WHATS[what] ?? "var(--group)";
const swatch = (paint) => {
  const box = make("i", { class: "swatch" });
  box.style.background = paint;
  return box;
};

// ---- Which rows there are

const view = { from: 0, to: 1 };
const chosen = { kind: new Set(), role: new Set(), state: new Set(), on: new Set() };
const MANY = 60; // branches above which they start closed
let closed = new Set();
let closedBefore = null; // while a filter is on, what it opened does not count
let found = null; // {hits, shown}: the spans that match, and those with all that is around them
let listed = [];
let selected = null;
let marking = false;

const states = (span) => [span.state, ...(span.attempt > 1 ? ["tried again"] : [])];

function relist() {
  listed = [];
  for (let place = 0; place < tree.length;) {
    const span = tree[place];
    const shown = !found || found.shown.has(span);
    if (shown) listed.push(span);
    place += !shown || closed.has(span) ? span.size + 1 : 1;
  }
  listed.forEach((span, row) => { span.row = row; });
  const height = listed.length * rowHeight();
  $("canvas").style.height = `${height}px`;
  $("rows").setAttribute("aria-rowcount", listed.length);
  $("nothing").hidden = listed.length > 0;
  draw(true);
}

const isListed = (span) => listed[span.row] === span;

function setClosed(span, close) {
  if (!span.children.length || closed.has(span) === close) return;
  if (close) closed.add(span);
  else closed.delete(span);
  relist();
}

function openAround(span) {
  for (let around = span.parent; around; around = around.parent) closed.delete(around);
}

function reveal(span) {
  if (found && !found.shown.has(span)) clearFilter();
  openAround(span);
  relist();
}

function collapsed() {
  return new Set(spans.filter((span) => span.children.length && (span.kind === "branch" || (!branches.length && span.depth === 1))));
}

let asked = 0; // how often the filter was changed: an answer that comes late is none

async function filter() {
  const turn = asked += 1;
  const sought = $("filter").value.trim().toLowerCase();
  const groups = ["kind", "role", "state", "on"].filter((group) => chosen[group].size);
  const deep = sought !== "" && $("deep").checked;
  if (deep) await loadBodies();
  if (turn !== asked) return;
  if (sought === "" && !groups.length) {
    if (found) closed = closedBefore;
    found = closedBefore = null;
    $("matches").textContent = "";
  } else {
    closedBefore ??= closed;
    closed = new Set();
    const known = new Map();
    const named = (span) => [span.name, span.role, span.model, span.error].some((text) => text?.toLowerCase().includes(sought));
    const inside = (span) => bodies.bodies[span.at] !== undefined && holds(bodies.bodies[span.at], sought, known);
    const hits = new Set(spans.filter((span) => groups.every((group) => fits(span, group))
      && (sought === "" || named(span) || (deep && inside(span)))));
    const shown = new Set(hits);
    for (const hit of hits) for (let around = hit.parent; around && !shown.has(around); around = around.parent) shown.add(around);
    found = { hits, shown };
    $("matches").textContent = `${whole(hits.size)} of ${counted(spans.length, "span")}`;
  }
  relist();
  drawMap();
  markFound();
}

function fits(span, group) {
  if (group === "on") return critical.has(span);
  if (group === "state") return states(span).some((state) => chosen.state.has(state));
  return chosen[group].has(span[group]);
}

function clearFilter() {
  $("filter").value = "";
  for (const group of Object.values(chosen)) group.clear();
  for (const chip of $("chips").querySelectorAll("button")) chip.setAttribute("aria-pressed", "false");
  filter();
}

function tally(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts];
}

function drawChips() {
  const group = (label, name, counts, paint = () => null) => counts.length > 0 && make("span", { class: "chips", role: "group", "aria-label": label },
    make("span", { class: "label" }, label),
    counts.map(([value, count]) => make("button", { class: "chip", "aria-pressed": "false", "data-group": name, "data-value": value },
      paint(value) && swatch(paint(value)), make("span", { class: "words" }, value), make("small", null, whole(count)))));
  const kindColour = (kind) => (["tool", "retriever", "documents"].includes(kind) ? colour({ kind }) : null);
  $("chips").replaceChildren(...[
    group("kind", "kind", tally(spans.map((span) => span.kind)).filter(([kind]) => kind !== "run"), kindColour),
    group("role", "role", tally(spans.map((span) => span.role).filter(Boolean)), roleColour),
    group("state", "state", tally(spans.flatMap(states)).filter(([state]) => state !== "ok")),
    group("on the", "on", critical.size ? [["critical path", critical.size]] : []),
  ].filter(Boolean));
}

// ---- The waterfall

const rowHeight = () => parseFloat(getComputedStyle($("rows")).getPropertyValue("--row"));
const drawn = new Map(); // span -> its row
let due = false;
let stale = false;

/** Draw with the next frame; `anew` where what is there no longer holds. */
function draw(anew) {
  stale ||= anew === true;
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    drawRows(stale);
    stale = false;
  });
}

function drawRows(anew) {
  const rows = $("rows"), height = rowHeight(), margin = 8;
  const first = Math.max(0, Math.floor(rows.scrollTop / height) - margin);
  const last = Math.min(listed.length, Math.ceil((rows.scrollTop + rows.clientHeight) / height) + margin);
  const wanted = new Set(listed.slice(first, last));
  for (const [span, row] of drawn) {
    if (!anew && wanted.has(span)) continue;
    row.remove();
    drawn.delete(span);
  }
  for (const span of wanted) if (!drawn.has(span)) drawn.set(span, rowOf(span, span.row * height));
  $("canvas").append(...[...wanted].filter((span) => !drawn.get(span).isConnected).map((span) => drawn.get(span)));
  rows.setAttribute("aria-activedescendant", selected && drawn.has(selected) ? `span-${selected.at}` : "");
  if (anew) drawAxis();
}

const BADGES = {
  failed: "failed", cancelled: "cancelled", recalled: "from the journal", waiting: "waits for a person", running: "running", lost: "lost",
};

function rowOf(span, top) {
  const open = span.children.length ? !closed.has(span) : null;
  const badge = BADGES[span.state];
  const isOn = critical.has(span);
  const marks = [span.kind, span.state, span === selected && "selected", marking && isOn && "on", marking && !isOn && "off",
    found && !found.hits.has(span) && "around"];
  const row = make("div", {
    class: `row ${marks.filter(Boolean).join(" ")}`, role: "row", id: `span-${span.at}`, "data-span": span.at, "aria-level": span.depth + 1,
    "aria-rowindex": span.row + 1, "aria-expanded": open === null ? null : String(open), "aria-selected": String(span === selected),
  },
  make("div", { class: "name", role: "gridcell" },
    make("span", { class: open === null ? "leaf" : "twisty", "aria-hidden": "true" }), swatch(colour(span)),
    make("span", { class: "words", title: plain(span.name) }, span.name),
    span.attempt > 1 && make("small", { class: "badge again" }, `attempt ${span.attempt}`),
    badge && make("small", { class: `badge ${span.state}` }, badge),
    open === false && inner(span)),
  make("div", { class: "track", role: "gridcell" }, bars(span)),
  make("div", { class: "took", role: "gridcell" }, span.end === null ? "…" : duration(span.end - span.start)));
  row.style.top = `${top}px`;
  row.style.setProperty("--depth", Math.min(span.depth, 24));
  row.style.setProperty("--bar", colour(span));
  return row;
}

/** What a closed row hides: how many spans, and how many of them failed. */
function inner(span) {
  const failed = tree.slice(span.place + 1, span.place + 1 + span.size).filter((below) => below.state === "failed").length;
  return [make("small", { class: "count", title: counted(span.size, "span") + " inside" }, whole(span.size)),
    failed > 0 && span.state !== "failed" && make("small", { class: "badge failed" }, `${failed} failed`)];
}

const MINI = 120; // spans below a closed row that are hinted at in it

function bars(span) {
  if (span.until < view.from) return make("span", { class: "beyond before" }, "‹");
  if (span.start > view.to) return make("span", { class: "beyond" }, "›");
  const sent = span.start + span.waited;
  const group = span.children.length ? " span" : "";
  const parts = [span.waited > 0 && bar(`wait${group}`, span.start, sent), bar(`call${group}${span.end === null ? " open" : ""}`, sent, span.until)];
  if (closed.has(span) && span.size <= MINI) {
    for (const below of tree.slice(span.place + 1, span.place + 1 + span.size)) {
      if (below.children.length) continue;
      const mini = bar("mini", below.start + below.waited, below.until);
      mini?.style.setProperty("--bar", colour(below));
      parts.push(mini);
    }
  }
  const isWide = ((span.until - sent) / (view.to - view.from)) * trackBox().width > 8;
  if (span.first !== null && isWide) parts.push(bar("first", span.first, span.first));
  if (marking) for (const { from, to } of critical.get(span) ?? []) parts.push(bar("path", from, to));
  return parts;
}

const share = (at) => (at - view.from) / (view.to - view.from);

function bar(kind, from, to) {
  if (to < view.from || from > view.to) return null;
  const left = Math.max(-0.02, share(from)), right = Math.min(1.02, share(to));
  const node = make("i", { class: `bar ${kind}` });
  node.style.left = `${left * 100}%`;
  node.style.width = `${(right - left) * 100}%`;
  return node;
}

const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];

function ticks(width) {
  const least = ((view.to - view.from) / Math.max(width, 80)) * 84; // pixels that a label needs
  let step = STEPS.find((size) => size >= least) ?? 86400 * Math.ceil(least / 86400);
  if (least < 1) step = [1, 2, 5, 10].map((size) => size * 10 ** Math.floor(Math.log10(least))).find((size) => size >= least * 0.999);
  const found = [];
  for (let number = Math.ceil(view.from / step - 1e-9); number * step <= view.to + 1e-9; number += 1) found.push([number * step, moment(number * step, step)]);
  return { found, step };
}

function trackBox() {
  const axis = $("axis").getBoundingClientRect();
  return { left: axis.left, width: Math.max(axis.width, 1) };
}

function drawAxis() {
  const { found: marks, step } = ticks(trackBox().width);
  const placed = (tag, at, ...inside) => {
    const node = make(tag, null, ...inside);
    node.style.left = `${share(at) * 100}%`;
    return node;
  };
  const fitting = marks.filter(([at]) => (1 - share(at)) * trackBox().width > 42);
  $("axis").replaceChildren(...fitting.map(([at, label]) => placed("span", at, label)));
  $("lines").replaceChildren(...marks.map(([at]) => placed("i", at)));
  $("lines").style.setProperty("--tall", `${$("rows").clientHeight}px`);
  const part = view.to - view.from < total * 0.9999;
  $("range").textContent = part ? `${moment(view.from, step / 10)} – ${moment(view.to, step / 10)} of ${duration(total)}` : duration(total);
  $("window").hidden = !part;
  $("window").style.left = `${(view.from / total) * 100}%`;
  $("window").style.width = `${((view.to - view.from) / total) * 100}%`;
  for (const id of ["out", "reset"]) $(id).disabled = !part;
}

function look(from, to) {
  const length = Math.min(total, Math.max(to - from, total / 1e5, 2e-4));
  view.from = Math.min(Math.max(0, from), total - length);
  view.to = view.from + length;
  draw(true);
}

function zoom(factor, around = (view.from + view.to) / 2) {
  look(around - (around - view.from) * factor, around + (view.to - around) * factor);
}

/** Bring rows into view that have bars in the part of time that is looked at, where none has. */
function follow() {
  const rows = $("rows"), height = rowHeight(), seen = Math.floor(rows.clientHeight / height), first = Math.floor(rows.scrollTop / height);
  const isThere = (span) => (!span.children.length || closed.has(span)) && span.until > view.from && span.start + span.waited < view.to;
  if (listed.slice(first, first + seen).some(isThere)) return;
  const there = listed.filter(isThere), middle = there[Math.floor(there.length / 2)];
  if (middle) rows.scrollTop = (middle.row - seen / 2) * height;
}

const pan = (part) => look(view.from + part * (view.to - view.from), view.to + part * (view.to - view.from));

// ---- The overview

const EACH = 150; // rows up to which the overview draws every span; of more it draws how many were under way at once

function drawMap() {
  const canvas = $("map"), box = $("overview").getBoundingClientRect(), scale = devicePixelRatio || 1;
  canvas.width = box.width * scale;
  canvas.height = box.height * scale;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  pen.ink = (paint) => { pen.fillStyle = style.getPropertyValue(paint.slice(4, -1)); };
  const strip = critical.size ? 5 * scale : 0, room = canvas.height - strip;
  const leaves = tree.filter((span) => !span.children.length);
  if (tree.length <= EACH) drawEach(pen, leaves, room, scale);
  else drawProfile(pen, leaves, room - 2 * scale);
  pen.globalAlpha = 1;
  for (const [, from, to, what] of facts.critical) {
    pen.ink(whatColour(what));
    pen.fillRect((from / total) * canvas.width, room, Math.max(((to - from) / total) * canvas.width, 0.5), strip);
  }
}

function drawEach(pen, leaves, room, scale) {
  const each = (room - 6 * scale) / tree.length, tall = Math.min(Math.max(each * 0.8, scale), 5 * scale), wide = pen.canvas.width;
  for (const span of leaves) {
    const left = ((span.start + span.waited) / total) * wide, right = (span.until / total) * wide;
    pen.globalAlpha = found && !found.hits.has(span) ? 0.15 : 1;
    pen.ink(colour(span));
    pen.fillRect(left, 3 * scale + span.place * each, Math.max(right - left, scale), tall);
  }
}

/** Spans under way at once over time, in layers of a colour each; what the filter leaves out is pale and lies on top. */
function drawProfile(pen, leaves, room) {
  const wide = pen.canvas.width, layers = new Map();
  for (const span of leaves) {
    const key = `${found && !found.hits.has(span) ? 1 : 0}${colour(span)}`;
    if (!layers.has(key)) layers.set(key, new Float32Array(wide + 2));
    const steps = layers.get(key), left = Math.floor(((span.start + span.waited) / total) * wide);
    steps[left] += 1;
    steps[Math.max(left + 1, Math.ceil((span.until / total) * wide))] -= 1;
  }
  for (const steps of layers.values()) for (let x = 1; x < wide; x += 1) steps[x] += steps[x - 1];
  const order = [...layers].sort(([one], [other]) => (one < other ? -1 : 1)), reached = new Float32Array(wide);
  const sums = reached.map((_, x) => order.reduce((sum, [, steps]) => sum + steps[x], 0)).sort();
  const most = Math.max(1, sums[Math.floor(wide * 0.99)]); // a short peak goes out of the picture, or nothing else is seen in it
  for (const [key, steps] of order) {
    pen.globalAlpha = key[0] === "1" ? 0.18 : 0.9;
    pen.ink(key.slice(1));
    for (let x = 0; x < wide; x += 1) {
      const tall = (steps[x] / most) * room;
      pen.fillRect(x, room - reached[x] - tall, 1, tall);
      reached[x] += tall;
    }
  }
}

function followOverview() {
  const overview = $("overview");
  const timeAt = (event) => {
    const box = overview.getBoundingClientRect();
    return (Math.min(Math.max(0, event.clientX - box.left), box.width) / box.width) * total;
  };
  let drag = null;
  overview.addEventListener("pointerdown", (event) => {
    const at = timeAt(event), inside = !$("window").hidden && at > view.from && at < view.to;
    drag = { how: event.target.dataset.grip ?? (inside ? "move" : "choose"), at, x: event.clientX, from: view.from, to: view.to };
    overview.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  overview.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const at = timeAt(event);
    if (drag.how === "move") look(drag.from + at - drag.at, drag.to + at - drag.at);
    else if (drag.how === "from") look(Math.min(at, drag.to - total / 1e4), drag.to);
    else if (drag.how === "to") look(drag.from, Math.max(at, drag.from + total / 1e4));
    else if (Math.abs(event.clientX - drag.x) > 3) look(Math.min(at, drag.at), Math.max(at, drag.at));
  });
  overview.addEventListener("pointerup", (event) => {
    const clicked = drag?.how === "choose" && Math.abs(event.clientX - drag.x) <= 3 && !$("window").hidden;
    if (clicked) look(drag.at - (view.to - view.from) / 2, drag.at + (view.to - view.from) / 2);
    drag = null;
    follow();
  });
  overview.addEventListener("pointercancel", () => { drag = null; });
  overview.addEventListener("dblclick", () => look(0, total));
}

// ---- Keys, the mouse, the beginning

const TABS = ["waterfall", "findings", "cost", "report"];

async function showTab(name) {
  for (const tab of TABS) {
    const on = tab === name;
    $(tab).hidden = !on;
    $(`tab-${tab}`).setAttribute("aria-selected", String(on));
    $(`tab-${tab}`).tabIndex = on ? 0 : -1;
  }
  if (name === "waterfall") afterResize();
  else await drawPanel(name);
}

function keyInRows(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !listed.length) return;
  const row = selected && isListed(selected) ? selected.row : -1, page = Math.max(1, Math.floor($("rows").clientHeight / rowHeight()) - 2);
  const to = (number) => select(listed[Math.min(Math.max(0, number), listed.length - 1)]);
  const open = selected && row >= 0 && selected.children.length > 0 && !closed.has(selected);
  const keys = {
    ArrowDown: () => to(row + 1), ArrowUp: () => to(row - 1), PageDown: () => to(row + page), PageUp: () => to(row - page),
    Home: () => to(0), End: () => to(listed.length - 1),
    ArrowRight: () => row >= 0 && (open ? listed[row + 1]?.parent === selected && to(row + 1) : setClosed(selected, false)),
    ArrowLeft: () => row >= 0 && (open ? setClosed(selected, true) : selected.parent && select(selected.parent)),
    Enter: () => row >= 0 && select(selected, { show: true }), " ": () => row >= 0 && setClosed(selected, open),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => look(0, total),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
}

function keyAnywhere(event) {
  const typing = event.target.matches("input, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    showTab("waterfall");
    $("filter").focus();
  } else if (event.key === "Escape" && !$("detail").hidden) {
    event.preventDefault();
    closeDetail();
  } else if (event.key === "Escape" && found) {
    event.preventDefault();
    clearFilter();
    $("rows").focus({ preventScroll: true });
  }
}

function followRows() {
  const rows = $("rows");
  rows.addEventListener("scroll", () => draw());
  rows.addEventListener("keydown", keyInRows);
  rows.addEventListener("focus", () => { if (!selected && listed.length && rows.matches(":focus-visible")) select(listed[0]); });
  $("canvas").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const span = spans[row.dataset.span];
    if (event.target.closest(".twisty")) setClosed(span, !closed.has(span));
    else select(span, { show: true });
  });
  rows.addEventListener("wheel", (event) => {
    const { left, width } = trackBox();
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!event.ctrlKey && !event.metaKey && !sideways) return;
    event.preventDefault();
    if (sideways) pan((event.deltaX || event.deltaY) / width);
    else zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) * 0.003), view.from + Math.min(1, Math.max(0, (event.clientX - left) / width)) * (view.to - view.from));
  }, { passive: false });
}

function followTools() {
  let timer = null;
  $("filter").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(filter, 120);
  });
  $("filter").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") $("rows").focus();
    if (event.key !== "Enter") return;
    $("deep").checked = true; // whoever asks again looks further
    filter();
  });
  $("deep").addEventListener("change", filter);
  $("chips").addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip) return;
    const group = chosen[chip.dataset.group], on = !group.delete(chip.dataset.value);
    if (on) group.add(chip.dataset.value);
    chip.setAttribute("aria-pressed", String(on));
    filter();
  });
  $("expand").addEventListener("click", () => { closed = new Set(); relist(); });
  $("collapse").addEventListener("click", () => { closed = collapsed(); relist(); });
  for (const [id, factor] of [["in", 0.5], ["out", 2]]) {
    $(id).addEventListener("click", () => {
      zoom(factor);
      follow();
    });
  }
  $("reset").addEventListener("click", () => look(0, total));
  $("critical").addEventListener("click", () => {
    marking = !marking;
    $("critical").setAttribute("aria-pressed", String(marking));
    $("path").hidden = !marking;
    if (marking) for (const span of critical.keys()) openAround(span);
    afterResize();
  });
  $("tabs").addEventListener("click", (event) => event.target.id.startsWith("tab-") && showTab(event.target.id.slice(4)));
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.findIndex((tab) => !$(tab).hidden) + step + TABS.length) % TABS.length];
    showTab(next);
    $(`tab-${next}`).focus();
  });
}

function afterResize() {
  if (!spans || $("waterfall").hidden) return;
  relist();
  drawMap();
}

async function begin() {
  facts = await inflated("facts-data");
  readSpans(facts.spans);
  delete facts.spans;
  roles = [...new Set(spans.filter((span) => span.kind === "model").map((span) => span.role))];
  view.to = total;
  if (branches.length > MANY) closed = collapsed();
  const findings = Object.values(facts.labels).reduce((sum, count) => sum + count, 0);
  $("tab-findings").append(make("small", null, whole(findings)));
  $("tab-report").disabled = !facts.reported;
  drawHead();
  drawChips();
  drawPath();
  followRows();
  followTools();
  followOverview();
  document.addEventListener("keydown", keyAnywhere);
  new ResizeObserver(afterResize).observe($("split"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  relist();
  drawMap();
  requestAnimationFrame(() => performance.mark("drawn"));
}

begin().catch((error) => {
  $("head").replaceChildren(make("p", { class: "error", role: "alert" }, `This page cannot be shown: ${error.message}. It needs a browser of 2023 or later.`));
  throw error;
});
