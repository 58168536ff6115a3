// The page: a tab per request of the chosen models, its progress and result, the history of the session.

import { call, follow } from "./client.js";
import { make, png, save } from "./dom.js";
import { buildForm } from "./forms.js";
import { gallery, openViewer, panels } from "./results.js";
import { theme } from "./theme.js";

const TITLES = {
  text: "Text to image", variations: "Variations", interpolate: "Interpolation", "text-diff": "Text diff",
  inpaint: "Inpainting", complete: "Completion", blend: "Blend", upscale: "Upscale", reconstruct: "Reconstruction",
  "probe-pca": "Components",
};
const STAGES = {
  "embed captions": "captions", "embed images": "images", invert: "inversion", decode: "decoder",
  upsample: "upsampler",
};
const MOST_ENTRIES = 40; // of the history
let choices = 0; // of models; an answer that another choice has overtaken is not shown
const opened = {}; // name of models -> { models, tabs }; they stay as they are while others are shown
let description; // of all commands
let current; // the entry of `opened` that is shown

async function start() {
  theme();
  takeToken();
  try {
    description = await call("");
    await openLink();
    window.addEventListener("hashchange", openLink);
  } catch (error) {
    document.getElementById("models").textContent = error.message;
  }
}

/** Shows the tabs of the models with this name; null = the server's first. */
async function openModels(name) {
  const choice = (choices += 1);
  if (name !== null && current?.models.name === name) return;
  let entry = Object.hasOwn(opened, name ?? "") ? opened[name] : null;
  if (!entry) {
    const models = await call(name === null ? "/models" : `/models?model=${encodeURIComponent(name)}`);
    entry = opened[models.name] ??= { models, tabs: buildTabs(models) };
    if (choice !== choices) return;
  }
  const command = current && shownTab().command;
  current = entry;
  const tabs = Object.values(entry.tabs);
  document.title = `unclip_jax · ${entry.models.name}`;
  heading(entry.models);
  document.getElementById("tabs").replaceChildren(...tabs.map((tab) => tab.button));
  document.getElementById("panels").replaceChildren(...tabs.map((tab) => tab.panel));
  select(Object.hasOwn(entry.tabs, command ?? "") ? command : tabs[0].command);
}

function buildTabs(models) {
  const names = Object.keys(description.commands).filter((name) => models.commands.includes(name));
  const order = [...Object.keys(TITLES), ...names].filter((name, index, all) =>
    names.includes(name) && all.indexOf(name) === index);
  const context = { limits: description.limits, models };
  return Object.fromEntries(order.map((name) => [name, buildTab(name, description.commands[name], context)]));
}

/** A token that came in the address (#token=...) is kept for this tab, not shown. */
function takeToken() {
  const match = location.hash.match(/^#token=(.+)$/);
  if (!match) return;
  sessionStorage.setItem("unclip-token", decoded(match[1]));
  setHash("");
}

/** A part of an address; itself if it is not encoded. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function heading(models) {
  const stages = Object.entries(models.stages).map(([name, card]) =>
    `${name} ${(card.parameters / 1e6).toFixed(1)} M (step ${card.step})`);
  const choice = make("select", { id: "model", "aria-label": "Models" },
    ...models.names.map((name) => make("option", { value: name, selected: name === models.name }, name)));
  choice.onchange = async () => {
    try {
      await openModels(choice.value);
      setHash(`#/${encodeURIComponent(current.models.name)}/${shownTab().command}`);
    } catch (error) {
      choice.value = current.models.name;
      say(shownTab(), error.message, { bad: true });
    }
  };
  document.getElementById("models").replaceChildren(
    "Models ", models.names.length > 1 ? choice : make("b", {}, models.name), `, ${models.sizes.join(" → ")} px: ${stages.join(" · ")}. `,
    models.clip_id ? `CLIP ${models.clip_id.slice(0, 12)} · ` : "", "JSON in, images out at ",
    make("a", { href: new URL("api", document.baseURI).href }, "/api"));
}

function buildTab(command, { does, fields }, context) {
  const title = TITLES[command] ?? command;
  const button = make("button", { type: "button", role: "tab", id: `tab-${command}`,
    "aria-controls": `panel-${command}` }, title);
  button.onclick = () => select(command);
  button.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = Object.keys(current.tabs);
    select(names[(names.indexOf(command) + step + names.length) % names.length], true);
  };
  const form = buildForm(command, fields, context);
  const go = make("button", { id: `go-${command}`, className: "primary" }, "Generate");
  const stop = make("button", { type: "button", id: `stop-${command}`, disabled: true }, "Stop");
  const share = make("button", { type: "button" }, "Copy link");
  form.element.append(make("div", { className: "row actions" }, go, stop, share));
  const status = make("div", { id: `status-${command}`, className: "status", role: "status" });
  const output = make("div", { id: `gallery-${command}`, className: "output" });
  const extras = make("div", {});
  const panel = make("section", { id: `panel-${command}`, role: "tabpanel", hidden: true,
    "aria-labelledby": `tab-${command}` },
    make("div", { className: "left" }, make("p", { className: "dim" }, does), form.element),
    make("div", { className: "right" }, status, output, extras));
  const { name } = context.models;
  const tab = { command, name, title, button, panel, form, fields, go, stop, status, output, extras, job: null, busy: false };
  say(tab, "Progress and messages appear here.");
  form.element.onsubmit = (event) => { event.preventDefault(); submit(tab); };
  form.element.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.tagName === "TEXTAREA") {
      event.preventDefault();
      form.element.requestSubmit();
    }
  };
  stop.onclick = () => cancel(tab);
  share.onclick = async () => {
    setHash(link(tab, await form.values()));
    await navigator.clipboard?.writeText(location.href).catch(() => {});
    share.textContent = "Copied";
    setTimeout(() => { share.textContent = "Copy link"; }, 1500);
  };
  return tab;
}

/** The tab that is shown of the current models. */
function shownTab() {
  return Object.values(current.tabs).find((tab) => !tab.panel.hidden);
}

function select(command, focus = false) {
  for (const tab of Object.values(current.tabs)) {
    const chosen = tab.command === command;
    tab.panel.hidden = !chosen;
    tab.button.setAttribute("aria-selected", chosen);
    tab.button.tabIndex = chosen ? 0 : -1;
    if (chosen) tab.button.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (chosen && focus) tab.button.focus();
  }
}

async function submit(tab) {
  if (tab.busy) return;
  tab.busy = true;
  tab.go.disabled = true;
  try {
    const values = await tab.form.values();
    setHash(link(tab, values));
    say(tab, "sending …", { share: 0 });
    const path = `/jobs/${tab.command}?model=${encodeURIComponent(tab.name)}`;
    const { job } = await call(path, { method: "POST", body: values });
    tab.job = job;
    tab.stop.disabled = false;
    tab.output.replaceChildren();
    tab.extras.replaceChildren();
    const state = await follow(job, (news) => report(tab, news));
    if (state.state === "done") await finish(tab, job, state, values);
    else if (state.state === "failed") say(tab, state.error, { bad: true });
    else say(tab, "Stopped.");
  } catch (error) {
    if (error.status === 404 && tab.job === null) say(tab, "Stopped.");
    else say(tab, error.message, { bad: true });
  }
  tab.job = null;
  tab.busy = false;
  tab.go.disabled = false;
  tab.stop.disabled = true;
}

function cancel(tab) {
  const job = tab.job;
  if (!job) return;
  tab.job = null;
  call(`/jobs/${job}`, { method: "DELETE" }).catch(() => {});
}

/** Status and previews of a job that is not done. */
function report(tab, { state, ahead, remaining_s: remaining, progress, previews }) {
  const rest = remaining === null || remaining === undefined ? "" : `about ${Math.ceil(remaining)} s left`;
  if (state === "waiting") {
    say(tab, ahead ? `waiting: ${ahead} before you …` : "starting …", { right: rest, share: 0 });
  } else if (state === "running") {
    const right = [
      progress.steps > 1 ? `step ${progress.step} of ${progress.steps}` : "",
      progress.total > 1 ? `${progress.done} of ${progress.total} images` : "", rest,
    ];
    const stage = STAGES[progress.stage] ?? progress.stage;
    say(tab, progress.compiling ? `compiling, once for these settings: ${stage}` : stage, { right: right.filter(Boolean).join(" · ") || "…", share: progress.share });
  }
  if (previews) tab.output.replaceChildren(gallery(previews.map(png)));
}

async function finish(tab, job, state, values) {
  const answer = await call(`/jobs/${job}/result`);
  const count = answer.images.length;
  const line = `${count === 1 ? "one image" : `${count} images`} in ${state.seconds.toFixed(1)} s`;
  say(tab, line, { right: "done", share: 1 });
  showResult(tab, answer, job);
  remember(tab, answer, job, values, line);
}

function showResult(tab, answer, job) {
  const { urls, labels } = panels(answer);
  const uses = Object.values(opened[tab.name].tabs).filter((other) => other.form.add && other.command !== "probe-pca")
    .map((other) => ({ title: other.title, use: (file) => { other.form.add(file); select(other.command); } }));
  const open = (index) => openViewer(urls, { labels, index, uses, name: tab.command });
  const columns = answer.animation ? null : answer.columns;
  tab.output.replaceChildren(gallery(urls, { labels, columns, open }));
  const download = make("button", { type: "button" }, "Download all, with the JSON");
  download.onclick = async () => {
    try {
      save(await call(`/jobs/${job}/archive`, { blob: true }), `${tab.command}.zip`);
    } catch (error) {
      say(tab, error.message, { bad: true });
    }
  };
  const record = make("pre", {}, JSON.stringify(answer.record, null, 2));
  tab.extras.replaceChildren(
    ...(answer.note ? [make("p", { className: "dim" }, answer.note)] : []),
    make("div", { className: "row" }, download),
    make("details", {}, make("summary", {}, "JSON that repeats this request"), record));
}

/** Adds a result to the history; a click shows it again and fills the form. */
function remember(tab, answer, job, values, line) {
  const image = make("img", { src: png(answer.images[answer.images.length - 1]), alt: "" });
  const entry = make("button", { type: "button", title: `${tab.title}: ${(answer.labels[0] ?? "")}` }, image,
    make("span", {}, tab.title));
  entry.onclick = async () => {
    await openModels(tab.name);
    tab.form.fill(values);
    select(tab.command);
    showResult(tab, answer, job);
    say(tab, line, { right: "earlier", share: 1 });
  };
  const entries = document.getElementById("entries");
  entries.prepend(entry);
  while (entries.children.length > MOST_ENTRIES) entries.lastChild.remove();
  document.getElementById("history").hidden = false;
}

/** The part of the address after # that fills this form; images are not in it. */
function link(tab, values) {
  const query = new URLSearchParams();
  for (const [name, start] of Object.entries(tab.form.starts)) {
    const value = values[name] ?? "";
    if (tab.fields[name].type.includes("image") || String(value) === String(start)) continue;
    query.set(name, Array.isArray(value) ? value.join("\n") : value);
  }
  const models = opened[tab.name].models.names.length > 1 ? `${encodeURIComponent(tab.name)}/` : "";
  return `#/${models}${tab.command}?${query}`;
}

async function openLink() {
  const [, name, command, query] = location.hash.match(/^#\/(?:([^/?]+)\/)?([a-z-]+)\??(.*)$/) ?? [];
  const shown = current?.models.name ?? null;
  let problem = null;
  try {
    await openModels(name === undefined ? shown : decoded(name));
  } catch (error) {
    if (name === undefined) throw error;
    problem = error.message;
    await openModels(shown);
  }
  const { tabs } = current;
  const tab = Object.hasOwn(tabs, command ?? "") ? tabs[command] : Object.values(tabs)[0];
  const values = {};
  for (const [name, value] of new URLSearchParams(query ?? "")) {
    if (!Object.hasOwn(tab.fields, name)) continue;
    values[name] = tab.fields[name].type.startsWith("list") ? value.split("\n") : value;
  }
  if (command) tab.form.fill(values);
  select(tab.command);
  if (problem) say(tab, problem, { bad: true });
}

function setHash(hash) {
  history.replaceState(null, "", location.href.split("#")[0] + hash);
}

/** One line of status; an error stays until the next request. */
function say(tab, left, { right = "", share = null, bad = false } = {}) {
  tab.status.classList.toggle("bad", bad);
  const bar = share === null ? null : make("progress", { max: 1, value: share });
  tab.status.replaceChildren(
    make("div", { className: "line" }, make("span", {}, left), make("span", { className: "dim" }, right)),
    ...(bar ? [bar] : []));
}

// Leaving the page ends what it asked for.
window.addEventListener("pagehide", () => {
  const all = Object.values(opened).flatMap(({ tabs }) => Object.values(tabs));
  for (const { job } of all) {
    if (job) call(`/jobs/${job}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }
});

start();
