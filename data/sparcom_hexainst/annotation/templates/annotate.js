
"use strict";
const $ = (id) => document.getElementById(id);
const form = JSON.parse($("form").textContent);
const criteria = new Map(form.criteria.map((criterion) => [criterion.name, criterion]));
const HERE = `sparcom-annotation/${form.sha256}`;
let state = null, at = 0, kept = true, changed = false;

// All text from users goes through textContent, here and nowhere else.
function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}
function report(text, className) { $("status").textContent = text; $("status").className = className || ""; }

// Answers: one entry per item, in the order of the form. The storage key contains the form's hash.
function fresh(annotator) {
  return { annotator, started: new Date().toISOString(), at: 0, items: form.items.map(() => ({ answers: {}, comment: "" })) };
}
function read(key) { try { return localStorage.getItem(key); } catch { return null; } }
function keyOf(annotator) { return `${HERE}/${annotator}`; }
function keep() {
  state.at = at;
  try {
    localStorage.setItem(keyOf(state.annotator), JSON.stringify(state));
    localStorage.setItem(HERE, state.annotator);
    kept = true;
  } catch { kept = false; }
  $("warning").hidden = kept;
}
function missing(index) { return form.items[index].ask.filter((name) => !(name in state.items[index].answers)); }
function lacking() { return form.items.map((item, index) => index).filter((index) => missing(index).length); }

// One item
function show(index, focus) {
  at = Math.max(0, Math.min(form.items.length - 1, index));
  draw();
  keep();
  if (focus) { $("place").focus({ preventScroll: true }); scrollTo(0, 0); }
}
function draw() {
  const item = form.items[at];
  $("item").replaceChildren(...content(item));
  $("item").scrollTop = 0;
  $("questions").replaceChildren(...item.ask.map((name) => question(item, criteria.get(name))), comment(item));
  $("back").disabled = at === 0;
  refresh();
  activate(open());
}
function content(item) {
  if (item.text !== undefined) return [text(item.text)];
  return item.messages.map((message) => {
    const turn = make("div", undefined, "turn");
    turn.append(make("p", { system: "System", user: "User", assistant: "Assistant" }[message.role], "role"), text(message.content));
    return turn;
  });
}
function text(words) { const node = make("p", words, "text"); node.dir = "auto"; return node; }
function question(item, criterion) {
  const set = make("fieldset"), legend = make("legend", criterion.title + " "), chosen = state.items[at].answers[criterion.name];
  legend.append(make("span", "", "done"));
  set.dataset.name = criterion.name;
  set.append(legend, make("p", criterion.question, "soft"), ...priorAnswers(item, criterion));
  const choices = make("div", undefined, "choices");
  choices.append(...criterion.options.map((option, index) => choice(criterion, option, index, option.value === chosen)));
  set.append(choices);
  set.addEventListener("focusin", () => activate(set));
  return set;
}
function choice(criterion, option, index, checked) {
  const label = make("label", undefined, "choice"), radio = make("input"), words = make("span");
  radio.type = "radio"; radio.name = criterion.name; radio.value = option.value; radio.checked = checked;
  radio.onchange = () => answer(criterion.name, option.value);
  words.append(make("span", `${option.label} `));
  if (index < 9) {
    const key = make("kbd", String(index + 1));
    key.setAttribute("aria-hidden", "true");
    words.append(key);
  }
  if (option.hint) words.append(make("small", option.hint, "soft"));
  label.append(radio, words);
  return label;
}
function priorAnswers(item, criterion) {
  if (!item.said.length) return [];
  const label = (value) => (criterion.options.find((option) => option.value === value) || { label: value }).label;
  const [one, other] = item.said.map((person) => label(person.answers[criterion.name]));
  return [make("p", `One annotator: ${one}. The other: ${other}.`, "said")];
}
function comment(item) {
  const box = make("div"), label = make("label", "Comment (optional)", "comment"), field = make("textarea");
  for (const [index, person] of item.said.entries())
    if (person.comment) box.append(make("p", `${index ? "The other annotator" : "One annotator"} remarked: ${person.comment}`, "said"));
  field.id = "comment"; label.htmlFor = "comment"; field.maxLength = 4000; field.value = state.items[at].comment;
  field.oninput = () => { state.items[at].comment = field.value; changed = true; keep(); };
  box.append(label, field);
  return box;
}
function answer(name, value) {
  state.items[at].answers[name] = value;
  changed = true;
  report("");
  keep();
  refresh();
}

// Around the item
function refresh() {
  const left = lacking(), open = new Set(missing(at));
  $("place").textContent = `${at + 1} of ${form.items.length}` + (form.items[at].number === at + 1 ? "" : `, item ${form.items[at].number}`);
  $("answered").textContent = `${form.items.length - left.length} answered`;
  $("progress").value = form.items.length - left.length;
  $("next").textContent = at === form.items.length - 1 ? "To the end" : open.size ? "Skip for now" : "Next";
  for (const set of sets()) set.querySelector(".done").textContent = open.has(set.dataset.name) ? "" : "✓";
  if ($("missing").childElementCount) showMissing(left);
  if ($("overview").open) showList();
}
function sets() { return [...$("questions").querySelectorAll("fieldset")]; }
function open() { const names = missing(at); return sets().find((set) => names.includes(set.dataset.name)); }
function activate(set) { for (const other of sets()) other.classList.toggle("active", other === set); }
function jump(label, index) {
  const button = make("button", label);
  button.type = "button";
  button.onclick = () => show(index, true);
  return button;
}
function showMissing(left) {
  if (left.length) report(`Not complete yet: ${left.length === 1 ? "one item lacks" : `${left.length} items lack`} an answer. “Save so far” keeps your answers.`, "bad");
  else report("Every item is answered: save as complete.", "good");
  const title = (name) => criteria.get(name).title.toLowerCase();
  $("missing").replaceChildren(...left.map((index) => {
    const row = make("li"), button = jump(`item ${form.items[index].number}: ${missing(index).map(title).join(", ")}`, index);
    button.className = "plain";
    row.append(button);
    return row;
  }));
}
function words(item) { return item.text ?? item.messages.map((message) => message.content).join("\n"); }
function showList() {
  const wanted = $("search").value.trim().toLowerCase();
  const fits = (item) => !wanted || words(item).toLowerCase().includes(wanted);
  const rows = form.items.map((item, index) => [item, index]).filter(([item]) => fits(item)).map(([item, index]) => {
    const row = make("li"), button = jump("", index), start = make("span", words(item), "start");
    start.dir = "auto";
    button.append(make("span", `${item.number} ${missing(index).length ? "" : "✓"}`, "number"), start);
    if (index === at) button.setAttribute("aria-current", "true");
    row.append(button);
    return row;
  });
  const others = form.reference.filter(fits).map((item) => {
    const row = make("li"), box = make("details");
    box.append(make("summary", `${item.number}: ${item.text.slice(0, 60)}`), text(item.text));
    row.append(box);
    return row;
  });
  $("list").replaceChildren(...rows, ...others);
}
function showGuide() {
  for (const criterion of form.criteria) {
    $("criteria").append(make("h3", criterion.title), make("p", criterion.question));
    for (const example of criterion.examples) {
      const option = criterion.options.find((known) => known.value === example.value);
      $("criteria").append(make("blockquote", `${example.text} → ${option ? option.label : example.value}. ${example.why}`));
    }
  }
}

// Files
function filled(complete) {
  const { annotator, started } = state;
  const items = form.items.map((item, index) => ({
    number: item.number, id: item.id, sha256: item.sha256, comment: state.items[index].comment.trim(),
    answers: Object.fromEntries(item.ask.map((name) => [name, state.items[index].answers[name] ?? null])),
  }));
  return { format: "sparcom-annotation", version: 1, kind: form.kind, dataset: form.dataset, form: form.sha256,
    categories: form.categories, annotator, started, saved: new Date().toISOString(), complete, items };
}
function save(complete) {
  const name = state.annotator.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "annotator";
  const link = make("a"), blob = new Blob([JSON.stringify(filled(complete), null, 1) + "\n"], { type: "application/json" });
  link.href = URL.createObjectURL(blob);
  link.download = `${form.kind}-${name}${complete ? "" : "-partial"}.json`;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  changed = false;
  report(complete ? `Complete: hand in ${link.download}.` : `Saved as ${link.download}, with ${lacking().length} items still open.`, "good");
}
function finish() {
  const left = lacking();
  if (!left.length) { $("missing").replaceChildren(); save(true); return; }
  showMissing(left);
}
function taken(file) {
  const wrong = (why) => { throw new Error(why); };
  if (file === null || typeof file !== "object" || file.format !== "sparcom-annotation") wrong("This is not a file of answers.");
  if (file.version !== 1) wrong("This file was saved by another version of the form.");
  if (file.form !== form.sha256) wrong("This file belongs to another form.");
  if (typeof file.annotator !== "string" || !file.annotator.trim()) wrong("This file names no annotator.");
  const result = fresh(file.annotator.trim());
  result.started = file.started || result.started;
  form.items.forEach((item, index) => {
    const found = Array.isArray(file.items) ? file.items.find((other) => other && other.id === item.id) : undefined;
    if (!found || found.sha256 !== item.sha256 || typeof found.answers !== "object" || !found.answers) wrong(`Item ${item.number} is missing in this file, or differs.`);
    for (const name of item.ask) {
      const value = found.answers[name] ?? null;
      if (value === null) continue;
      if (!criteria.get(name).options.some((option) => option.value === value)) wrong(`Item ${item.number}, ${name}: ${String(value).slice(0, 40)} is not a valid answer.`);
      result.items[index].answers[name] = value;
    }
    result.items[index].comment = String(found.comment ?? "");
  });
  return result;
}
function lost(before, after) {
  return before.items.filter((item, index) => {
    const other = after.items[index];
    return Object.entries(item.answers).some(([name, value]) => other.answers[name] !== value) || (item.comment.trim() && item.comment.trim() !== other.comment.trim());
  }).length;
}
async function load(input) {
  const [file] = input.files;
  input.value = "";
  if (!file) return;
  try {
    let parsed;
    try { parsed = JSON.parse(await file.text()); } catch { throw new Error("This file cannot be read as JSON."); }
    const loaded = taken(parsed), before = stored(loaded.annotator), count = before ? lost(before, loaded) : 0;
    if (count && !confirm(`${count === 1 ? "One item differs" : `${count} items differ`} from the answers that this browser keeps for ${loaded.annotator}. Replace them with the file?`)) return;
    begin(loaded);
    report(`Loaded ${file.name}: ${lacking().length} items still open.`, "good");
  } catch (error) { if ($("work").hidden) $("start-status").textContent = error.message; else report(error.message, "bad"); }
}

// Who answers
function stored(annotator) {
  try {
    const found = JSON.parse(read(keyOf(annotator)));
    const whole = found.items.length === form.items.length && found.items.every((item) => typeof item.comment === "string" && item.answers);
    return whole ? found : null;
  } catch { return null; }
}
function begin(loaded) {
  state = loaded;
  state.annotator = state.annotator.trim();
  $("name").textContent = state.annotator;
  for (const [id, hidden] of [["start", true], ["who", false], ["work", false], ["after", false]]) $(id).hidden = hidden;
  const first = lacking()[0];
  show(state.at || (first ?? 0));
}
function ask() {
  $("start-status").textContent = "";
  for (const [id, hidden] of [["start", false], ["who", true], ["work", true], ["after", true]]) $(id).hidden = hidden;
  $("annotator").focus();
}

// Keys
function onKey(event) {
  if ($("work").hidden || event.isComposing) return;
  const target = event.target, typing = target.matches("textarea, input:not([type=radio])");
  if (event.key === "Enter" && event.ctrlKey && target.id === "comment") return void forward();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing || (event.key === "Enter" && target.matches("button, summary, a"))) return;
  if (event.key === "Enter") {
    event.preventDefault();
    if (event.shiftKey) return void show(at - 1, true);
    const set = open();
    if (set) focusOn(set); else forward();
  } else if (/^[1-9]$/.test(event.key)) pick(Number(event.key) - 1, event);
}
function pick(index, event) {
  const set = sets().find((other) => other.classList.contains("active")) || open() || sets()[0];
  const radio = set.querySelectorAll("input")[index];
  if (!radio) return;
  event.preventDefault();
  radio.checked = true;
  answer(set.dataset.name, radio.value);
  const next = open();
  if (next) focusOn(next); else $("next").focus();
}
function focusOn(set) {
  (set.querySelector("input:checked") || set.querySelector("input")).focus();
  set.scrollIntoView({ block: "nearest" });
}
function forward() {
  if (at < form.items.length - 1) return show(at + 1, true);
  $("finish").scrollIntoView({ block: "center" });
  $("finish").focus();
}

$("begin").onsubmit = (event) => {
  event.preventDefault();
  const annotator = $("annotator").value.trim();
  if (annotator) { begin(stored(annotator) || fresh(annotator)); $("place").focus({ preventScroll: true }); }
};
$("questions").onsubmit = (event) => event.preventDefault();
$("back").onclick = () => show(at - 1, true);
$("next").onclick = forward;
$("save").onclick = () => save(false);
$("finish").onclick = finish;
$("other").onclick = ask;
for (const id of ["load", "load-start"]) $(id).onchange = (event) => load(event.target);
$("overview").ontoggle = () => { if ($("overview").open) showList(); };
$("search").oninput = showList;
document.addEventListener("keydown", onKey);
addEventListener("beforeunload", (event) => { if (changed && !kept) event.preventDefault(); });
addEventListener("storage", (event) => {  // the same form in another tab: the later answer wins in both
  if (!state || event.key !== keyOf(state.annotator) || !event.newValue) return;
  state = JSON.parse(event.newValue);
  draw();
});
showGuide();
const known = read(HERE), resumed = known && stored(known);
if (resumed) begin(resumed); else ask();
