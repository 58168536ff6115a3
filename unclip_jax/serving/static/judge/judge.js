// The page on which a rater compares two models: one prompt at a time, two questions each.

import { call } from "./client.js";
import { make } from "./dom.js";
import { theme } from "./theme.js";

const RATER = "unclip-rater"; // in the storage of the browser
const SMALL = 256; // images below this side are shown pixel by pixel
const at = (id) => document.getElementById(id);

let session = null;
let steps = []; // one per question: { prompt, question }
let step = 0; // steps.length = the end
let storing = false;

async function start() {
  theme();
  try {
    const { rater } = await call("");
    at("change").hidden = Boolean(rater);
    const name = rater || localStorage.getItem(RATER);
    if (!name || !(await open(name))) askName(name ?? "");
  } catch (error) {
    at("progress").textContent = "";
    fail(error);
  }
}

/** Asks for the name under which answers are stored. */
function askName(name) {
  at("progress").textContent = "";
  at("name").hidden = false;
  at("rater").value = name;
  at("rater").focus();
  at("name").onsubmit = (event) => {
    event.preventDefault();
    open(at("rater").value);
  };
}

/** Loads the questions of a rater and shows the first that is open; false if that failed. */
async function open(name) {
  try {
    session = await call(`/session?rater=${encodeURIComponent(name)}`);
  } catch (error) {
    fail(error);
    return false;
  }
  localStorage.setItem(RATER, session.rater);
  at("name").hidden = at("problem").hidden = true;
  at("bar").hidden = at("steps").hidden = false;
  steps = session.prompts.flatMap((prompt) => session.questions.map((question) => ({ prompt, question })));
  step = openStep(0);
  show();
  return true;
}

const answerOf = ({ prompt, question }) => prompt.answers[question.name];

/** The next step without an answer, from `first` on and then from the beginning. */
function openStep(first) {
  const isOpen = (each, index) => index >= first && !answerOf(each);
  const later = steps.findIndex(isOpen);
  const any = later >= 0 ? later : steps.findIndex((each) => !answerOf(each));
  return any >= 0 ? any : steps.length;
}

function show() {
  const count = session.prompts.length;
  const ready = session.prompts.filter((prompt) => session.questions.every(({ name }) => prompt.answers[name]));
  at("progress").textContent = `${session.rater}: ${ready.length} of ${count} prompts answered`;
  at("bar").value = ready.length / count;
  const current = steps[step];
  at("comparison").hidden = !current;
  at("end").hidden = Boolean(current);
  at("back").disabled = step === 0;
  at("next").disabled = !current || !answerOf(current);
  if (!current) return;
  const { prompt } = current;
  if (at("comparison").dataset.prompt !== prompt.id) {
    at("comparison").dataset.prompt = prompt.id;
    at("caption").textContent = prompt.text;
    for (const side of ["left", "right"]) at(side).replaceChildren(...pictures(side, prompt[side]));
    const following = steps[step + session.questions.length];
    if (following) preload(following.prompt);
  }
  at("questions").replaceChildren(...session.questions.map((question) => asked(prompt, question)));
}

function pictures(side, names) {
  at(side).style.setProperty("--columns", Math.ceil(Math.sqrt(names.length)));
  return names.map((name, index) => {
    const image = make("img", { src: address(name), alt: `${side} ${index + 1}` });
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth < SMALL);
    return image;
  });
}

const address = (name) => new URL(`pictures/${name}`, document.baseURI).href;

function preload(prompt) {
  for (const name of [...prompt.left, ...prompt.right]) new Image().src = address(name);
}

/** A question with its choices; the keys 1, 2 and 3 answer the current one. */
function asked(prompt, question) {
  const isCurrent = steps[step].question === question;
  const buttons = session.choices.map((choice, index) => {
    const isChosen = prompt.answers[question.name] === choice.name;
    const button = make("button", { type: "button", "aria-pressed": String(isChosen) }, choice.text,
      isCurrent ? make("kbd", {}, String(index + 1)) : null);
    button.onclick = () => answer({ prompt, question }, choice);
    return button;
  });
  const text = question.text.replace("{caption}", () => prompt.text);
  return make("div", { className: "question", ...(isCurrent ? { "aria-current": "step" } : {}) },
    make("p", { dir: "auto" }, text), make("div", { className: "row" }, ...buttons));
}

/** Stores an answer, and goes on once the server has confirmed it. */
async function answer({ prompt, question }, choice) {
  if (storing) return;
  storing = true;
  try {
    await call("/answers", { method: "POST", body: {
      rater: session.rater, prompt: prompt.id, question: question.name, answer: choice.name,
    } });
    prompt.answers[question.name] = choice.name;
    at("problem").hidden = true;
    step = openStep(steps.findIndex((each) => each.prompt === prompt && each.question === question));
    show();
  } catch (error) {
    fail(error);
  } finally {
    storing = false;
  }
}

function move(by) {
  if (!session || storing) return;
  const next = step + by;
  if (next < 0 || next > steps.length || (by > 0 && !(steps[step] && answerOf(steps[step])))) return;
  step = next;
  show();
}

function fail(error) {
  at("problem").hidden = false;
  at("problem").textContent = error.message;
}

at("back").onclick = () => move(-1);
at("next").onclick = () => move(1);
at("change").onclick = () => {
  localStorage.removeItem(RATER);
  location.reload();
};
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
  if (event.target instanceof HTMLInputElement || !session) return;
  const choice = session.choices[["1", "2", "3"].indexOf(event.key)];
  if (choice && steps[step]) answer(steps[step], choice);
  else if (event.key === "ArrowLeft" || event.key === "Backspace") move(-1);
  else if (event.key === "ArrowRight") move(1);
});

start();
