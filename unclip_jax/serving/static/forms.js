// The form of a request, built from the description of its fields that GET /api gives.

import { make } from "./dom.js";
import { imageField, maskField } from "./images.js";

// In this order after what a request needs; everything else lies under "More".
const PRIMARY = [
  "images", "image_weights", "texts", "text_weights", "source", "caption", "theta", "etas", "inversion", "noise",
  "components", "from_size", "frames", "num", "best_of", "guidance", "seed",
];
const LABELS = {
  captions: "Captions, one per line",
  texts: "Captions, one per line",
  num: "Images",
  etas: "Freedom (eta), a row each",
  target: "It should become",
  source: "It is (may be left out)",
  theta: "How far (theta), usually 0.25 to 0.5",
  inversion: "How much of the image stays",
  frames: "Images of the path",
  mask: "What is filled",
  guidance: "Guidance, 1 = off",
  negative: "Away from (needs guidance above 1)",
  candidates: "Embeddings to choose from",
  best_of: "Best of",
};
const CHOICES = { ddpm: "most (DDPM inversion)", ddim: "as in the paper (x_T)" };
const LINES = new Set(["captions", "texts"]);
const STEPS = [10, 25, 50, 100, 250];

/** Values that the page begins with where they are not the command's defaults. */
function presets(command, { limits, models }) {
  const timesteps = models.decoder.timesteps ?? 100;
  const images = limits.images;
  const edits = { steps: String(Math.min(50, timesteps)) };
  return {
    text: { num: Math.min(2, images) },
    variations: { ...edits, etas: [0, 0.5, 1], num: Math.max(1, Math.min(3, Math.floor(images / 3))) },
    "text-diff": { ...edits, inversion: "ddpm", frames: Math.min(7, images) },
    interpolate: { ...edits, frames: Math.min(7, images) },
    inpaint: { steps: String(Math.min(50, timesteps)), num: Math.min(4, images) },
    upscale: {},
    complete: { num: Math.min(4, images) },
  }[command] ?? edits;
}

/** What a request needs comes first, then what is set often. */
function byRank([name, field], [other, otherField]) {
  const place = (key) => (PRIMARY.includes(key) ? PRIMARY.indexOf(key) : PRIMARY.length);
  const rank = (key, { required }) => (required ? -1 : place(key));
  return rank(name, field) - rank(other, otherField);
}

/** A form with `values()`, `fill(values)`, `set(name, value)` and `add(file)` for the first image. */
export function buildForm(command, fields, context) {
  const form = make("form", { className: "request" });
  const more = make("details", {}, make("summary", {}, "More"));
  const preset = presets(command, context);
  const inputs = {};
  const starts = {};
  for (const [name, field] of Object.entries(fields).sort(byRank)) {
    const id = `${command}-${name}`;
    const start = preset[name] ?? field.default;
    starts[name] = start ?? "";
    inputs[name] = inputOf(command, name, field, id, start, context);
    const label = LABELS[name] ?? name.replaceAll("_", " ");
    const row = make("div", { className: "field", title: field.help }, make("label", { htmlFor: id }, label),
      inputs[name].element);
    (field.required || PRIMARY.includes(name) ? form : more).append(row);
  }
  if (inputs.mask && inputs.image) inputs.image.onChange = inputs.mask.follow;
  if (more.children.length > 1) form.append(more);
  const first = Object.values(inputs).find((input) => input.add);
  return {
    element: form,
    add: first ? (file) => first.add(file) : null,
    starts,
    set: (name, value) => inputs[name]?.set?.(value),
    /** Sets every field but images: to its value, or to what the form begins with. */
    fill: (values) => {
      for (const [name, start] of Object.entries(starts)) inputs[name].set?.(values[name] ?? start);
    },
    values: async () => {
      const values = {};
      for (const [name, input] of Object.entries(inputs)) {
        const value = await input.value();
        if (value !== null) values[name] = value;
      }
      if (values.guidance === 1) delete values.guidance_schedule;
      return values;
    },
  };
}

/** The input of one field: `element`, `value()`, and `set(value)` or `add(file)`. */
function inputOf(command, name, field, id, start, context) {
  const kind = field.type.replace("list of ", "");
  const many = field.type.startsWith("list");
  if (kind === "image") {
    if (name === "mask") return maskField(id);
    const most = many ? field.count[1] : 1;
    const input = { onChange: () => {} };
    return Object.assign(input, imageField(id, { many, most, onChange: (files) => input.onChange(files) }));
  }
  if (kind === "boolean") return checkbox(id, start);
  if (field.choices) return select(id, field, start);
  if (many && LINES.has(name)) return lines(id, start, context);
  if (many) return list(id, kind, start);
  if (kind === "text") return text(id, name, field, start, context);
  return number(id, name, field, start, context);
}

function checkbox(id, start) {
  const element = make("input", { type: "checkbox", id, checked: Boolean(start) });
  const set = (value) => { element.checked = value === true || value === "true"; };
  return { element, set, value: () => element.checked };
}

function select(id, field, start) {
  const options = field.choices.map((choice) => make("option", { value: choice }, CHOICES[choice] ?? choice));
  if (field.default === undefined) options.unshift(make("option", { value: "" }, "–"));
  const element = make("select", { id }, ...options);
  const set = (value) => { element.value = value ?? ""; };
  set(start);
  return { element, set, value: () => element.value || null };
}

function lines(id, start, { limits, models }) {
  const element = make("textarea", {
    id, rows: 2, placeholder: models.examples[0] ?? "a caption",
    maxLength: limits.captions * limits.images, value: (start ?? []).join("\n"), dir: "auto",
  });
  const value = () => {
    const texts = element.value.split("\n").filter((line) => line.trim());
    return texts.length ? texts : null;
  };
  const set = (texts) => { element.value = Array.isArray(texts) ? texts.join("\n") : texts; };
  const examples = models.examples.map((caption) => {
    const button = make("button", { type: "button", title: caption, dir: "auto" }, caption);
    button.onclick = () => set(caption);
    return button;
  });
  const row = examples.length ? make("div", { className: "examples" }, ...examples) : null;
  return { element: make("div", {}, element, row), set, value };
}

function list(id, kind, start) {
  const element = make("input", { id, value: (start ?? []).join(", "), placeholder: "0, 0.5, 1" });
  const value = () => {
    const items = element.value.split(/[\s,;]+/).filter(Boolean);
    if (!items.length) return null;
    return kind === "text" ? items : items.map((item) => (item === "" || isNaN(item) ? item : Number(item)));
  };
  const set = (items) => { element.value = Array.isArray(items) ? items.join(", ") : items; };
  return { element, set, value };
}

function text(id, name, field, start, { models, limits }) {
  const element = make("input", { id, value: start ?? "", maxLength: limits.captions, dir: "auto" });
  const children = [element];
  if (name === "steps") {
    element.placeholder = models.decoder.steps ?? "";
    const counts = STEPS.filter((count) => count <= models.decoder.timesteps);
    element.setAttribute("list", `${id}-list`);
    children.push(make("datalist", { id: `${id}-list` }, ...counts.map((value) => make("option", { value }))));
  }
  if (name === "guidance_schedule") {
    element.setAttribute("list", `${id}-list`);
    const kinds = ["constant", "rising", "falling", "interval:0.2:0.8"];
    children.push(make("datalist", { id: `${id}-list` }, ...kinds.map((value) => make("option", { value }))));
  }
  const set = (value) => { element.value = value ?? ""; };
  return { element: make("div", {}, ...children), set, value: () => element.value || null };
}

function number(id, name, field, start, { models }) {
  const [min, max] = field.range ?? ["", ""];
  const whole = field.type === "integer";
  const element = make("input", {
    type: "number", id, min: min ?? "", max: max ?? "", step: whole ? 1 : "any", value: start ?? "",
    placeholder: (name === "guidance" && models.decoder.guidance) || "as exported",
  });
  const value = () => (element.value === "" ? null : Number(element.value));
  const set = (item) => { element.value = item ?? ""; };
  if (name !== "seed") return { element, set, value };
  const dice = make("button", { type: "button", title: "Another seed", "aria-label": "Another seed" }, "⚄");
  dice.onclick = () => set(crypto.getRandomValues(new Uint32Array(1))[0] % (max + 1));
  return { element: make("div", { className: "row" }, element, dice), set, value };
}
