// Results: a gallery whose images enlarge, a comparison with the first image, uses in other requests.

import { blobOf, make, png, save } from "./dom.js";

const SMALL = 256; // images below this side are shown pixel by pixel

/** The images of an answer in rows, each with its label. */
export function gallery(urls, { labels = [], columns = null, open = null } = {}) {
  const element = make("div", { className: "gallery" });
  element.style.setProperty("--columns", columns ?? Math.max(1, Math.min(4, urls.length)));
  urls.forEach((url, index) => {
    const image = make("img", { src: url, alt: labels[index] ?? "" });
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth < SMALL);
    const button = make("button", { type: "button", className: "tile" }, image);
    if (open) button.onclick = () => open(index);
    else button.disabled = true;
    element.append(make("figure", {}, button, make("figcaption", { dir: "auto" }, labels[index] ?? "")));
  });
  return element;
}

/** Shows one image of a result large, with what can be done with it. */
export function openViewer(urls, { labels, index, uses, name }) {
  const viewer = document.getElementById("viewer");
  const stage = document.getElementById("stage");
  const actions = document.getElementById("viewer-actions");
  const label = document.getElementById("viewer-label");
  const action = (text, run) => {
    const button = make("button", { type: "button" }, text);
    button.onclick = run;
    return button;
  };
  const kindOf = (url) => url.match(/^data:image\/(\w+)/)[1];
  const first = kindOf(urls[0]) === "png" ? 0 : 1; // behind the animation, if there is one
  const show = (number) => {
    index = (number + urls.length) % urls.length;
    const image = make("img", { src: urls[index], alt: labels[index] ?? "" });
    const kind = kindOf(urls[index]);
    const file = index < first ? `${name}.${kind}` : `${name}-${index - first}.${kind}`;
    image.classList.toggle("pixels", index >= first);
    stage.replaceChildren(image);
    label.textContent = labels[index] ?? "";
    label.dir = "auto";
    const buttons = [
      urls.length > 1 ? action("←", () => show(index - 1)) : null,
      urls.length > 1 ? action("→", () => show(index + 1)) : null,
      index > first ? action("Compare with the first", () => compare()) : null,
      action("Save", () => save(blobOf(urls[index]), file)),
      ...(index < first ? [] : uses).map(({ title, use }) => action(`→ ${title}`, () => {
        viewer.close();
        use(new File([blobOf(urls[index])], file, { type: "image/png" }));
      })),
    ];
    actions.replaceChildren(...buttons.filter(Boolean));
  };
  const compare = () => {
    const below = make("img", { src: urls[first], alt: labels[first] ?? "", className: "pixels" });
    const above = make("img", { src: urls[index], alt: labels[index] ?? "", className: "pixels above" });
    const slider = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Before and after" });
    const move = () => above.style.setProperty("clip-path", `inset(0 0 0 ${slider.value}%)`);
    slider.oninput = move;
    move();
    stage.replaceChildren(make("div", { className: "compare" }, below, above), slider);
  };
  viewer.onkeydown = (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") show(index - 1);
    if (event.key === "ArrowRight") show(index + 1);
  };
  show(index);
  viewer.showModal();
}

/** URLs and labels of everything that an answer shows; an animation comes first. */
export function panels(answer) {
  const urls = answer.images.map(png);
  const labels = [...answer.labels];
  if (answer.animation) {
    const kind = answer.animation.startsWith("R0lG") ? "gif" : "webp";
    urls.unshift(`data:image/${kind};base64,${answer.animation}`);
    labels.unshift("the whole path");
  }
  return { urls, labels };
}
