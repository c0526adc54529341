// The playground: streams answers of the two endpoints, and measures when each token comes.
"use strict";

const $ = (id) => document.getElementById(id);
const csrf = document.querySelector("meta[name=csrf]").content;

/** One request: its stream, its pieces and their times. */
class Run {
  constructor(path, body, place) {
    this.path = path;
    this.body = body;
    this.place = place;
    this.text = "";
    this.times = [];
    this.pieces = [];
    this.abort = new AbortController();
  }

  async go() {
    this.begin = performance.now();
    const answer = await fetch(this.path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-hearth-csrf": csrf },
      body: JSON.stringify({ ...this.body, stream: true, stream_options: { include_usage: true } }),
      signal: this.abort.signal,
    });
    if (!answer.ok) throw new Error(await reason(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      held += value;
      const events = held.split("\n\n");
      held = events.pop();
      // Pieces that came in one read were made one after the other: each has its share of the time.
      const before = this.times.length;
      const now = performance.now();
      for (const event of events) this.take(event);
      const came = this.times.length - before;
      const gap = (now - (this.last ?? this.begin)) / Math.max(came, 1);
      for (let i = before; i < this.times.length; i++) {
        this.times[i] = before === 0 && i > 0 ? 0 : gap;
        this.pieces[i].title = `+${this.times[i].toFixed(1)} ms`;
      }
      if (before === 0 && came > 0) this.times[0] = now - this.begin;
      if (came > 0) this.last = now;
    }
  }

  take(event) {
    if (!event.startsWith("data: ") || event === "data: [DONE]") return;
    const chunk = JSON.parse(event.slice(6));
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    if (choice.finish_reason) this.end = choice.finish_reason;
    const text = choice.delta?.content ?? choice.text ?? "";
    if (!text) return;
    this.times.push(0);
    this.text += text;
    const piece = document.createElement("span");
    piece.className = "piece";
    piece.textContent = text;
    this.pieces.push(piece);
    this.place.append(piece);
  }
}

async function reason(answer) {
  if (answer.status === 401) return "You are signed out. Load the page again.";
  try {
    const error = (await answer.json()).error;
    return error.message ?? `${error.what}; ${error.fix}`;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** The sums in words, and a bar for each piece. */
function tell(run) {
  const [first, ...gaps] = run.times;
  const seconds = ((run.last ?? performance.now()) - run.begin) / 1000;
  const tokens = run.usage?.completion_tokens ?? run.times.length;
  const words = [`${tokens} ${tokens === 1 ? "token" : "tokens"} in ${seconds.toFixed(2)} s`];
  if (first != null) words.push(`the first after ${first.toFixed(0)} ms`);
  if (gaps.length) {
    const whole = gaps.reduce((sum, gap) => sum + gap, 0) / 1000;
    words.push(`then ${(gaps.length / whole).toFixed(0)} a second`);
    words.push(`between two ${quantile(gaps, 0.5).toFixed(1)} ms, p95 ${quantile(gaps, 0.95).toFixed(1)} ms`);
  }
  if (run.usage) {
    const cached = run.usage.prompt_tokens_details?.cached_tokens;
    words.push(`prompt ${run.usage.prompt_tokens} tokens${cached ? `, ${cached} cached` : ""}`);
  }
  if (run.end) words.push(run.end === "length" ? "cut at the limit" : "ended by itself");
  $("sums").textContent = words.join(" · ");
  // A few slow ones must not flatten all others.
  const usual = gaps.length ? quantile(gaps, 0.5) : 0;
  const top = Math.max(quantile(run.times, 0.97) ?? 1, 1);
  const bars = run.times.map((gap, i) => {
    const bar = document.createElement("i");
    const slow = i > 0 && gap > 4 * usual && gap > 5;
    bar.className = i === 0 ? "first" : slow ? "slow" : "";
    bar.style.height = `${Math.max(3, Math.min(100, (gap / top) * 100))}%`;
    bar.title = `${run.pieces[i].textContent.trim() || "blank"}: ${gap.toFixed(1)} ms`;
    run.pieces[i].classList.toggle("slow", slow);
    return bar;
  });
  $("bars").replaceChildren(...bars);
}

let running = null;

/** Runs one request at a time. Returns whether it came to its end. */
async function play(path, body, place) {
  running?.abort.abort();
  const run = new Run(path, body, place);
  running = run;
  $("timings").hidden = false;
  $("stop").hidden = false;
  const drawing = setInterval(() => tell(run), 250);
  try {
    await run.go();
    if (!run.text) {
      const nothing = document.createElement("span");
      nothing.className = "soft";
      nothing.textContent = "The model ended at once, without any text.";
      place.append(nothing);
    }
    return run;
  } catch (error) {
    if (error.name !== "AbortError") {
      const failed = document.createElement("span");
      failed.className = "failed";
      failed.setAttribute("role", "alert");
      failed.textContent = error.message;
      place.append(failed);
      return null;
    }
    return run.text ? run : null;
  } finally {
    clearInterval(drawing);
    tell(run);
    if (running === run) {
      running = null;
      $("stop").hidden = true;
    }
  }
}

function knobs() {
  const body = {
    model: $("model").value,
    temperature: Number($("temperature").value),
    max_tokens: Number($("most").value),
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  return body;
}

// Chat

let turns = [];

function turn(role, text) {
  if (!turns.length && $("turns").querySelector(".empty")) $("turns").replaceChildren();
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  $("turns").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  turn("user", question);
  turns.push({ role: "user", content: question });
  const place = turn("assistant", "");
  const run = await play("/play/chat", { ...knobs(), messages: turns }, place);
  // What failed is not part of the conversation that goes on.
  if (run) turns.push({ role: "assistant", content: run.text });
  else turns.pop();
  place.scrollIntoView({ block: "nearest" });
});

$("clear").addEventListener("click", () => {
  running?.abort.abort();
  turns = [];
  const empty = document.createElement("li");
  empty.className = "empty";
  empty.textContent = "Ask something. The conversation stays in this page alone.";
  $("turns").replaceChildren(empty);
});

// Fill in the middle

$("gap").addEventListener("submit", (event) => {
  event.preventDefault();
  $("middle").replaceChildren();
  const body = { ...knobs(), prompt: $("prefix").value, suffix: $("suffix").value };
  play("/play/fill", body, $("middle"));
});

$("stop").addEventListener("click", () => running?.abort.abort());

for (const form of [$("ask"), $("gap")]) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

// Tabs, and what the chosen model can do

let mode = "chat";

function show(next) {
  mode = next;
  for (const name of ["chat", "fill"]) {
    $(name).hidden = name !== mode;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === mode));
  }
  const chosen = $("model").selectedOptions[0];
  const can = chosen && chosen.dataset[mode === "chat" ? "chats" : "fills"] === "true";
  const cannot = $("cannot");
  cannot.hidden = Boolean(can);
  cannot.textContent = !chosen
    ? "No model is served."
    : `${chosen.value} was not made for ${mode === "chat" ? "conversations" : "filling gaps"}; requests are refused.`;
}

$("tab-chat").addEventListener("click", () => show("chat"));
$("tab-fill").addEventListener("click", () => show("fill"));
$("model").addEventListener("change", () => show(mode));
show("chat");
