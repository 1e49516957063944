// The page where one person chooses between two answers. All text goes into the page as text, never as HTML.
import { compare } from "/static/diff.js";
import { Outbox, post } from "/static/outbox.js";

const boot = JSON.parse(document.body.dataset.boot);
const { words } = boot;
const $ = (id) => document.getElementById(id);
const LOOK_AGAIN = 15000; // ms, where nothing was left to judge

const state = { items: [], judged: new Set(), history: [], shownAt: 0, done: 0, left: 0, isDiff: false, isLoading: false, hasLoaded: false };

const say = (text) => { $("said").textContent = text; };
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const percent = ([equal, all]) => (all ? `${Math.round((100 * equal) / all)} %` : "–");

const outbox = new Outbox(boot.outbox, boot.csrf, {
  acknowledged(entry, answer) {
    take(answer);
    if (entry.path === "/api/undo") undone(answer);
    else if (entry.body.key === state.history.at(-1)) told(entry.body.pick, answer);
  },
  refused(entry, reason) {
    state.history = state.history.filter((key) => key !== entry.body.key);
    say(fill(words.refused, { reason }));
    load();
  },
  changed: drawSending,
});

const outboxIsQuiet = () => state.hasLoaded && outbox.entries.length === 0 && !state.isLoading;

// What the server says that this browser holds, less what was judged here a moment ago.
function take(answer) {
  const before = state.items[0]?.view;
  const fresh = answer.items.filter((item) => !state.judged.has(item.view));
  const current = fresh.find((item) => item.view === before);
  state.items = current ? [current, ...fresh.filter((item) => item !== current)] : fresh;
  Object.assign(state, { done: answer.done, left: answer.left });
  const waiting = outbox.entries.filter((entry) => entry.path === "/api/votes").length;
  state.done += waiting;
  state.left = Math.max(0, state.left - waiting);
  $("agree").textContent = [[words.self_agreement, answer.with_self], [words.others_agreement, answer.with_others]]
    .filter(([, of]) => of[1]).map(([text, of]) => fill(text, { percent: percent(of) })).join(" · ");
  drawProgress();
  if (state.items[0]?.view !== before || !state.shownAt) draw();
}

async function load() {
  if (state.isLoading) return;
  state.isLoading = true;
  const { status, answer } = await post("/api/next", {}, boot.csrf);
  state.isLoading = false;
  if (status === 200) {
    state.hasLoaded = true;
    if (!outbox.entries.length) state.history = answer.undoable;
    take(answer);
    drawSending();
  } else {
    outbox.refusal = status;
    drawSending();
    setTimeout(load, 1000);
  }
}

function vote(pick) {
  const item = state.items[0];
  if (!item) return;
  const strength = document.querySelector("input[name=strength]:checked");
  const isSided = pick === "left" || pick === "right";
  const key = crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");
  const body = {
    key,
    view: item.view,
    pick,
    strength: isSided && strength ? Number(strength.value) : null,
    tags: [...document.querySelectorAll("input[name=tag]:checked")].map((box) => box.value),
    note: ($("note").value.toWellFormed?.() ?? $("note").value).trim(), // the length's limit may cut a character in two
    seconds: Math.round(performance.now() - state.shownAt) / 1000,
  };
  state.judged.add(item.view);
  state.items.shift();
  state.history.push(key);
  state.done += 1;
  state.left = Math.max(0, state.left - 1);
  say(fill(words.not_revealed, { vote: words[`voted_${pick}`] }));
  outbox.add("/api/votes", body);
  drawProgress();
  draw();
}

function undo() {
  const key = state.history.pop();
  if (key) outbox.add("/api/undo", { key });
  else say(words.nothing_to_undo);
  drawProgress();
}

function undone(answer) {
  if (!outbox.entries.length) state.history = answer.undoable;
  if (answer.again) {
    state.items = [answer.again, ...state.items.filter((item) => item.view !== answer.again.view)];
    draw();
  }
  say(words.undone);
  drawProgress();
}

function told(pick, answer) {
  const name = (model) => model || words.unknown_model;
  const vote = words[`voted_${pick}`];
  const isTold = answer.left_model !== null;
  say(isTold ? fill(words.revealed, { vote, left: name(answer.left_model), right: name(answer.right_model) }) : fill(words.not_revealed, { vote }));
}

function drawProgress() {
  $("count").textContent = `${fill(words.votes_done, { n: state.done })} · ${fill(words.votes_left, { n: state.left })}`;
  $("progress").max = Math.max(1, state.done + state.left);
  $("progress").value = state.done;
  $("undo").disabled = !state.history.length;
}

function drawSending() {
  const n = outbox.entries.length;
  let text = n === 0 ? words.saved : fill(n === 1 ? words.waiting_one : words.waiting, { n });
  if (!outbox.isKept) text = words.no_storage;
  if (outbox.refusal === 401) text = words.signed_out;
  if (outbox.refusal === 403) text = words.stale;
  if ($("sending").textContent !== text) $("sending").textContent = text;
  $("sending").classList.toggle("warn", n > 0 || outbox.isRefused || !outbox.isKept);
  document.body.dataset.waiting = n;
  $("empty").hidden = Boolean(state.items.length) || !outboxIsQuiet();
}

// The current pair.
function draw() {
  const item = state.items[0];
  for (const id of ["prompt", "answers"]) $(id).hidden = !item;
  for (const button of document.querySelectorAll(".pick")) button.disabled = !item;
  for (const input of document.querySelectorAll(".why input")) {
    input.checked = false;
    if (input.id === "note") input.value = "";
  }
  $("main").setAttribute("aria-busy", String(!item));
  document.body.dataset.view = item?.view ?? "";
  drawSending();
  if (!item) return;
  state.shownAt = performance.now();
  drawText($("prompt-text"), item.prompt);
  drawAnswers();
  for (const id of ["prompt-text", "left-text", "right-text"]) $(id).scrollTop = 0;
  window.scrollTo(0, 0); // on a phone the page scrolls, not its parts
  if (!document.activeElement || document.activeElement === document.body || $("desk").contains(document.activeElement))
    $("prompt").focus({ preventScroll: true }); // a screen reader goes on with the prompt
}

function drawAnswers() {
  const item = state.items[0];
  if (!item) return;
  const plain = (messages) => messages.map((message) => message.content).join("\n\n");
  const marks = state.isDiff ? compare(plain(item.left), plain(item.right)) : [null, null];
  drawText($("left-text"), item.left, marks[0]);
  drawText($("right-text"), item.right, marks[1]);
}

function drawText(place, messages, marks = null) {
  place.replaceChildren();
  if (marks) {
    const paragraph = document.createElement("p");
    paragraph.dir = "auto";
    for (const [part, isShared] of marks) {
      if (isShared) paragraph.append(part);
      else paragraph.append(Object.assign(document.createElement("mark"), { textContent: part }));
    }
    place.append(paragraph);
    return;
  }
  for (const { role, content } of messages) {
    if (role && messages.length > 1) place.append(Object.assign(document.createElement("h3"), { textContent: words[`role_${role}`] ?? role }));
    place.append(Object.assign(document.createElement("p"), { textContent: content, dir: "auto" }));
  }
}

function setStrength(change) {
  const steps = [...document.querySelectorAll("input[name=strength]")];
  const now = steps.findIndex((step) => step.checked);
  const next = Math.min(steps.length - 1, now + change);
  for (const step of steps) step.checked = false;
  if (next >= 0) steps[next].checked = true;
}

function toggleDiff() {
  state.isDiff = !state.isDiff;
  $("diff").setAttribute("aria-pressed", String(state.isDiff));
  drawAnswers();
}

const shortcuts = {
  1: () => vote("left"), a: () => vote("left"), 2: () => vote("right"), b: () => vote("right"), t: () => vote("tie"),
  x: () => vote("both_bad"), s: () => vote("skip"), u: undo, d: toggleDiff, n: () => $("note").focus(),
  "?": () => $("keys").showModal(), arrowup: () => setStrength(+1), arrowdown: () => setStrength(-1),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("#note");
  if (event.isComposing || event.keyCode === 229) return; // Enter takes a word of an input method, not the note
  if (isTyping && (event.key === "Escape" || event.key === "Enter")) return $("prompt").focus({ preventScroll: true });
  if (isTyping || $("keys").open || !$("single-keys").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key.startsWith("arrow") && event.target.matches?.("input[type=radio], .text:focus")) return; // theirs
  if (!(key in shortcuts)) return;
  event.preventDefault();
  shortcuts[key]();
});

for (const button of document.querySelectorAll(".pick")) button.addEventListener("click", () => vote(button.dataset.pick));
$("undo").addEventListener("click", undo);
$("diff").addEventListener("click", toggleDiff);
$("help").addEventListener("click", () => $("keys").showModal());
$("close").addEventListener("click", () => $("keys").close());
$("leave").addEventListener("click", async () => {
  await outbox.flush();
  await post("/api/leave", {}, boot.csrf);
  location.reload();
});
try {
  $("single-keys").checked = localStorage.getItem("surefoot-single-keys") !== "off";
  $("single-keys").addEventListener("change", (event) => localStorage.setItem("surefoot-single-keys", event.target.checked ? "on" : "off"));
} catch {
  outbox.isKept = false;
}
document.addEventListener("visibilitychange", () => {
  const isOld = state.items.some((item) => item.expires * 1000 < Date.now());
  if (!document.hidden && (isOld || !state.items.length)) load();
});
setInterval(() => { if (!document.hidden && !state.items.length && outboxIsQuiet()) load(); }, LOOK_AGAIN);

drawSending();
outbox.flush().then(load);
