// What there is to read on the page of a trace: its head, the details of a span, findings, cost and the report.
// It follows page.js in the same script, whose `begin` waits for its data before it uses anything of this file.

// ---- The head

const STATUS = {
  complete: "good", partial: "warn", limited: "warn", failed: "bad", crashed: "bad", interrupted: "asks", cancelled: "idle", running: "runs",
};

function drawHead() {
  const { input, usage } = facts;
  const texts = Object.values(input ?? {}).filter((value) => typeof value === "string");
  document.title = plain(`${texts[0] ?? facts.workflow} · trace of ${facts.run_id}`);
  const fact = (name, ...value) => make("div", null, make("dt", null, name), make("dd", null, ...value));
  const tokens = `${whole(usage.input_tokens)} in, ${whole(usage.output_tokens)} out`;
  const more = Object.keys(input ?? {}).length > (texts.length ? 1 : 0);
  $("head").replaceChildren(
    make("div", { class: "who" },
      make("span", { class: `pill ${STATUS[facts.status] ?? "idle"}`, id: "status" }, facts.status),
      make("b", null, facts.workflow), make("code", null, facts.run_id), facts.thread && make("span", null, "thread ", facts.thread),
      more && make("details", { class: "input" }, make("summary", null, "Input"), json(input))),
    make("h1", null, texts[0] ?? "Trace"),
    make("dl", { class: "facts" },
      fact("total time", duration(facts.seconds)), fact("model calls", whole(usage.model_calls)), fact("tokens", tokens),
      fact("cost", usd(usage.cost_usd)), fact("model", facts.model || "none"), fact("begun", date(facts.began)),
      facts.attempts > 1 && fact("attempts", whole(facts.attempts)), fact("spans", whole(spans.length))),
    ...(facts.error ? [make("p", { class: "error", role: "alert" }, facts.error)] : []));
}

// ---- The critical path

function drawPath() {
  const spent = new Map();
  for (const [, from, to, what] of facts.critical) spent.set(what, (spent.get(what) ?? 0) + to - from);
  const rows = [...spent].sort((one, other) => other[1] - one[1]), sum = rows.reduce((all, [, time]) => all + time, 0);
  const line = make("div", { class: "stack", "aria-hidden": "true" }, rows.map(([what, time]) => {
    const piece = make("i");
    piece.style.background = whatColour(what);
    piece.style.flexGrow = time;
    return piece;
  }));
  $("path").replaceChildren(line, make("table", { role: "table", "aria-label": "Where the time of the critical path went" },
    make("tbody", { role: "rowgroup" }, rows.map(([what, time]) => make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader" }, swatch(whatColour(what)), what),
      make("td", { role: "cell" }, duration(time)), make("td", { role: "cell" }, percent(time / sum)))))));
  $("critical").disabled = !rows.length;
}

// ---- The details of a span

function select(span, { show = false } = {}) {
  selected = span;
  const rows = $("rows"), height = rowHeight(), top = span.row * height, head = $("axis").offsetHeight;
  if (top < rows.scrollTop) rows.scrollTop = top;
  else if (top + height > rows.scrollTop + rows.clientHeight - head) rows.scrollTop = top + height - rows.clientHeight + head;
  draw(true);
  if (show || !$("detail").hidden) showDetail(span);
}

function closeDetail() {
  $("detail").hidden = true;
  document.body.classList.remove("detailed");
  $("rows").focus({ preventScroll: true });
  afterResize();
}

async function showDetail(span) {
  const detail = $("detail"), wasHidden = detail.hidden;
  detail.hidden = false;
  document.body.classList.add("detailed");
  if (wasHidden) afterResize();
  detail.replaceChildren(...detailHead(span), make("p", { class: "muted" }, "Reading…"));
  await loadBodies();
  if (selected !== span || detail.hidden) return; // another row was chosen meanwhile
  const notes = unpacked(bodies.notes[span.at] ?? []), body = bodies.bodies[span.at];
  detail.replaceChildren(...detailHead(span),
    ...(notes.length ? [make("section", null, make("h3", null, "Notes"),
      make("ul", { class: "notes" }, notes.map(([at, text]) => make("li", null, make("time", null, duration(at)), " ", text))))] : []),
    ...(body === undefined ? [make("p", { class: "muted" }, "Nothing was kept of what went in and came out.")] : bodyOf(unpacked(body))));
  detail.scrollTop = 0;
  markFound();
}

function detailHead(span) {
  const path = [];
  for (let around = span.parent; around; around = around.parent) path.unshift(around);
  const fact = (name, value) => value !== null && value !== "" && value !== undefined && make("div", null, make("dt", null, name), make("dd", null, value));
  const isCall = span.kind === "model";
  return [
    make("div", { class: "title" },
      make("nav", { "aria-label": "Around the span" }, path.map((around) => make("button", { class: "link", click: () => go(around) }, around.name))),
      make("button", { class: "close", "aria-label": "Close the details", title: "Close (Esc)", click: closeDetail }, "×"),
      make("h2", null, swatch(colour(span)), make("span", null, span.name)),
      make("p", { class: "tags" }, make("span", { class: `pill ${stateClass(span)}` }, span.state === "recalled" ? "from the journal" : span.state),
        make("span", { class: "tag" }, span.kind), span.attempt > 1 && make("span", { class: "tag" }, `attempt ${span.attempt}`),
        critical.has(span) && make("span", { class: "tag on" }, "critical path"),
        make("button", { class: "copy", click: () => look(span.start - (span.until - span.start) / 8, span.until + (span.until - span.start) / 8) }, "Zoom to it"))),
    make("dl", { class: "facts" },
      fact("started", duration(span.start)), fact("ended", span.end === null ? (span.state === "running" ? "still running" : "never") : duration(span.end)),
      fact("took", span.end === null ? null : duration(span.end - span.start)),
      fact("waited for a turn", span.sent === null ? null : duration(span.waited)), fact("sent", span.sent === null ? null : duration(span.sent)),
      fact("first token", span.first === null ? null : `${duration(span.first)} (after ${duration(span.first - (span.sent ?? span.start))})`),
      fact("role", span.role), fact("branch", span.branch), fact("model", span.model), fact("attempt", whole(span.attempt)),
      fact("tokens", isCall ? `${whole(span.input_tokens)} in, ${whole(span.output_tokens)} out` : null), fact("cost", isCall ? usd(span.cost_usd) : null),
      fact("spans inside", span.size ? whole(span.size) : null)),
    ...(span.error ? [make("p", { class: "error" }, span.error)] : []),
  ];
}

const stateClass = (span) => ({ ok: "good", failed: "bad", lost: "bad", cancelled: "idle", recalled: "runs", waiting: "asks", running: "runs" })[span.state] ?? "idle";

function go(span) {
  showTab("waterfall");
  reveal(span);
  select(span, { show: true });
  $("rows").focus({ preventScroll: true });
}

function bodyOf(body) {
  const parts = (body.messages ?? []).map((message) => messageBox(message));
  if ("answer" in body) {
    parts.push(body.answer ? messageBox(body.answer, "answer") : make("p", { class: "muted" }, "There is no answer."));
    return [make("h3", null, "Prompt"), ...parts.slice(0, -1), make("h3", null, "Answer"), parts.at(-1)];
  }
  for (const name of ["input", "output"]) if (name in body) parts.push(make("h3", null, name === "input" ? "Input" : "Output"), valueBox(body[name]));
  return parts;
}

function messageBox(message, kind) {
  const calls = message.calls ?? [], text = message.text ?? "";
  return make("section", { class: `message ${kind ?? message.role}`, "data-role": message.role },
    make("header", null, make("b", null, message.role), text !== "" && [make("small", null, `${whole(text.length)} characters`), copyButton(text)]),
    text !== "" && folded(text, kind === "answer" ? pretty(text) ?? passages(text) : passages(text)),
    calls.map((call) => make("div", { class: "tool" },
      make("header", null, make("b", null, call.name), make("small", null, "call"), copyButton(JSON.stringify(call.args, null, 2))), json(call.args))));
}

function valueBox(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "null";
  return make("section", { class: "message value" }, make("header", null, make("small", null, `${whole(text.length)} characters`), copyButton(text)),
    folded(text, typeof value === "string" ? pretty(value) ?? passages(value) : json(value)));
}

const LONG = 1400; // characters, and lines, above which a text starts folded
const LINES = 22;

function folded(text, inside) {
  const box = make("div", { class: "text" }, inside);
  if (text.length <= LONG && text.split("\n").length <= LINES) return box;
  box.classList.add("folded");
  const button = make("button", { class: "unfold", "aria-expanded": "false", click: () => {
    const isFolded = box.classList.toggle("folded");
    button.textContent = isFolded ? "Show all" : "Show less";
    button.setAttribute("aria-expanded", String(!isFolded));
  } }, "Show all");
  return [box, button];
}

const pre = (text) => make("div", { class: "pre" }, text);

/** JSON set out in lines; null where the text is none. */
function pretty(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    return json(JSON.parse(text));
  } catch {
    return null;
  }
}

function json(value) {
  const parts = JSON.stringify(value, null, 2).split(/("(?:[^"\\]|\\.)*"(?=:)|"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b|-?\d[\d.eE+-]*)/);
  // What stands between is punctuation; a name is a string before a colon.
  return make("div", { class: "pre json" }, parts.map((part, place) => {
    if (place % 2 === 0) return part;
    const kind = part[0] !== '"' ? "literal" : parts[place + 1].startsWith(":") ? "key" : null;
    return kind ? make("span", { class: kind }, part) : part;
  }));
}

// A data block of a prompt: its tag ends in the run's boundary, which no text inside can repeat.
const BLOCK = /<(question|([a-z][a-z_]*)-[0-9a-f]{2,})((?: [a-z_]+="[^"<>]*")*)>\n([\s\S]*?)\n<\/\1>/g;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&#39;": "'", "&amp;": "&" };

function passages(text) {
  const parts = [];
  let reached = 0;
  const between = (until) => {
    const piece = text.slice(reached, until);
    if (piece.trim() !== "") parts.push(pre(reached || until < text.length ? piece.replace(/^\n+|\n+$/g, "") : piece));
  };
  for (const match of text.matchAll(BLOCK)) {
    between(match.index);
    reached = match.index + match[0].length;
    const given = Object.fromEntries([...match[3].matchAll(/ ([a-z_]+)="([^"]*)"/g)].map(([, name, value]) => [name, value.replace(/&\w+;|&#\w+;/g, (sign) => ENTITIES[sign] ?? sign)]));
    const { source, title, id, ...others } = given;
    parts.push(make("div", { class: "passage" },
      make("h4", null, make("span", { class: "tag" }, match[2] ?? match[1]), source && make("b", null, source), title && make("span", null, title),
        Object.entries(others).map(([name, value]) => make("span", null, `${name} ${value}`)), id && make("code", null, id)),
      pre(match[4])));
  }
  between(text.length);
  return parts;
}

function copyButton(text) {
  const button = make("button", { class: "copy", "aria-label": "Copy the text", click: async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Not allowed";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // no clipboard for a page of this origin: the old way
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Mark what the filter looks for in the details, without touching their text. */
function markFound() {
  const sought = $("filter").value.trim().toLowerCase();
  if (!window.Highlight) return;
  CSS.highlights.delete("found");
  if (sought === "" || $("detail").hidden) return;
  const ranges = [], walker = document.createTreeWalker($("detail"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode() && ranges.length < 2000) {
    const text = walker.currentNode.data.toLowerCase();
    for (let place = text.indexOf(sought); place >= 0 && text.length === walker.currentNode.length; place = text.indexOf(sought, place + sought.length)) {
      const range = new Range();
      range.setStart(walker.currentNode, place);
      range.setEnd(walker.currentNode, place + sought.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

// ---- Findings, cost, report

const panels = new Set(); // those that were drawn

async function drawPanel(name) {
  if (panels.has(name)) return;
  panels.add(name);
  if (name === "cost") {
    drawCost();
    return;
  }
  $(name).replaceChildren(make("p", { class: "muted" }, "Reading…"));
  await loadBodies();
  if (name === "findings") drawFindings();
  else $("report").replaceChildren(make("article", { class: "report" }, markdown(unpacked(bodies.report) ?? "There is no report.")));
}

const VERDICTS = { supported: "good", contradicted: "bad", unsupported: "warn" };
const AT_ONCE = 50;

function drawFindings() {
  const all = bodies.findings, list = make("ol", { class: "cards" });
  const more = make("button", { class: "more" }), labels = new Set();
  let wanted = [], shown = 0;
  const next = () => {
    list.append(...wanted.slice(shown, shown + AT_ONCE).map((finding) => findingCard(unpacked(finding))));
    shown = Math.min(shown + AT_ONCE, wanted.length);
    more.hidden = shown >= wanted.length;
    more.textContent = `Show more: ${whole(shown)} of ${whole(wanted.length)} are shown`;
  };
  const again = () => {
    wanted = labels.size ? all.filter((finding) => labels.has(unpacked(finding.m.label) ?? "")) : all;
    list.replaceChildren();
    shown = 0;
    next();
  };
  more.addEventListener("click", next);
  const chips = Object.entries(facts.labels).map(([label, count]) => make("button", { class: "chip", "aria-pressed": "false", click: (event) => {
    if (!labels.delete(label)) labels.add(label);
    event.currentTarget.setAttribute("aria-pressed", String(labels.has(label)));
    again();
  } }, make("span", { class: `dot ${VERDICTS[label] ?? "idle"}` }), make("span", { class: "words" }, label || "not checked"), make("small", null, whole(count))));
  $("findings").replaceChildren(all.length ? make("div", { class: "line chips" }, chips) : make("p", { class: "muted" }, "There are no findings."), list, more);
  again();
}

function findingCard(finding) {
  const branch = branches.find((span) => span.branch === finding.branch && finding.branch !== null);
  return make("li", { class: "card" },
    make("header", null, make("span", { class: `pill ${VERDICTS[finding.label] ?? "idle"}` }, finding.label || "not checked"),
      branch ? make("button", { class: "link", click: () => go(branch) }, branch.name) : finding.branch),
    make("p", { class: "claim" }, finding.claim),
    finding.reason && make("p", { class: "reason" }, finding.reason),
    (finding.citations ?? []).map((cited) => make("figure", null, make("figcaption", null, cited.source),
      make("blockquote", { class: `${cited.before ? "more-before" : ""} ${cited.after ? "more-after" : ""}` }, cited.before, make("mark", null, cited.quote), cited.after))));
}

function drawCost() {
  const columns = [
    ["calls", "calls", whole], ["tokens in", "input_tokens", whole], ["tokens out", "output_tokens", whole], ["cost", "cost_usd", usd],
    ["under way", "seconds", duration], ["waited", "waited", duration],
  ];
  const sums = columns.map(([, name]) => facts.roles.reduce((sum, row) => sum + (row[name] ?? 0), 0));
  const cell = (row, [label, name, say], place) => {
    const part = sums[place] ? (row[name] ?? 0) / sums[place] : 0, meter = make("i", { class: "share" });
    meter.style.width = `${part * 100}%`;
    return make("td", { "data-label": label }, make("span", null, say(row[name])), make("small", null, sums[place] && row[name] !== null ? percent(part) : ""), make("span", { class: "meter" }, meter));
  };
  const table = make("table", { class: "costs" },
    make("thead", null, make("tr", null, ["role", "model"].map((name) => make("th", { scope: "col" }, name)), columns.map(([label]) => make("th", { scope: "col", class: "number" }, label)))),
    make("tbody", null, facts.roles.map((row) => make("tr", null, make("th", { scope: "row" }, swatch(roleColour(row.role)), row.role || "none"),
      make("td", { "data-label": "model" }, row.model), columns.map((column, place) => cell(row, column, place))))),
    make("tfoot", null, make("tr", null, make("th", { scope: "row" }, "all"), make("td"), columns.map(([label, name, say], place) =>
      make("td", { "data-label": label }, make("span", null, name === "cost_usd" ? usd(facts.usage.cost_usd) : say(sums[place])), make("small"))))));
  $("cost").replaceChildren(facts.roles.length ? table : make("p", { class: "muted" }, "No model was called."),
    make("p", { class: "muted" }, "Under way: the time of all calls together, several of which run at once. Waited: for a turn, before the calls were sent."));
}

/** Headings, lists, quotes, code and emphasis of a report. Links stay text: nothing on this page leads away from it. */
function markdown(text) {
  const blocks = [], lines = text.split("\n");
  for (let place = 0; place < lines.length;) {
    const run = (pattern) => {
      const from = place;
      while (place < lines.length && pattern.test(lines[place])) place += 1;
      return lines.slice(from, place);
    };
    const heading = /^(#{1,6})\s+(.*)$/.exec(lines[place]);
    const bullet = /^\s*(?:[-*+]|\d+[.)])\s+/;
    if (heading) blocks.push(make(`h${Math.min(6, heading[1].length + 1)}`, null, emphasis(heading[2]))), place += 1;
    else if (lines[place].startsWith("```")) {
      place += 1;
      blocks.push(make("div", { class: "pre code" }, run(/^(?!```)/).join("\n")));
      place += 1;
    } else if (bullet.test(lines[place])) {
      const ordered = /^\s*\d/.test(lines[place]);
      blocks.push(make(ordered ? "ol" : "ul", null, run(ordered ? /^\s*\d+[.)]\s+/ : /^\s*[-*+]\s+/).map((line) => make("li", null, emphasis(line.replace(bullet, ""))))));
    } else if (/^\s*>/.test(lines[place])) blocks.push(make("blockquote", null, emphasis(run(/^\s*>/).map((line) => line.replace(/^\s*> ?/, "")).join("\n"))));
    else if (lines[place].trim() === "") place += 1;
    else {
      const from = place;
      place += 1;
      run(/^(?!#{1,6}\s|```|\s*[-*+]\s|\s*\d+[.)]\s|\s*>|\s*$)/);
      blocks.push(make("p", null, emphasis(lines.slice(from, place).join("\n"))));
    }
  }
  return blocks;
}

function emphasis(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).filter(Boolean).map((part) => {
    if (/^\*\*[^*]+\*\*$/.test(part)) return make("strong", null, part.slice(2, -2));
    return /^`[^`]+`$/.test(part) ? make("code", null, part.slice(1, -1)) : part;
  });
}
