// Fields for images: files that are chosen, dropped or pasted, and a mask that is painted.

import { dataUrl, make } from "./dom.js";

const ACCEPT = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff";

/** A field of one image, or of several in order. */
export function imageField(id, { many = false, most = 1, onChange = () => {} } = {}) {
  let files = [];
  const input = make("input", { type: "file", accept: ACCEPT, multiple: many, id });
  const shown = make("div", { className: "thumbnails" });
  const hint = many ? `Choose, drop or paste up to ${most} images` : "Choose, drop or paste an image";
  const area = make("label", { className: "drop", tabIndex: 0 }, make("span", {}, hint), input);
  const element = make("div", {}, area, shown);

  const set = (items) => {
    files = many ? items.slice(0, most) : items.slice(-1);
    for (const image of shown.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    shown.replaceChildren(...files.map((file, index) => thumbnail(file, index)));
    input.value = "";
    onChange(files);
  };
  const thumbnail = (file, index) => {
    const image = make("img", { src: URL.createObjectURL(file), alt: file.name || "image" });
    image.onerror = () => image.replaceWith(make("span", {}, file.name || "a file"));
    const remove = make("button", { type: "button", title: "Remove", "aria-label": "Remove" }, "×");
    remove.onclick = () => set(files.filter((_, other) => other !== index));
    return make("figure", {}, image, remove);
  };
  input.onchange = () => set([...files, ...input.files]);
  area.ondragover = (event) => event.preventDefault();
  area.ondrop = (event) => {
    event.preventDefault();
    set([...files, ...event.dataTransfer.files]);
  };
  area.onpaste = (event) => set([...files, ...event.clipboardData.files]);
  return {
    element,
    add: (file) => set([...files, file]),
    value: async () => {
      const urls = await Promise.all(files.map(dataUrl));
      if (many) return urls.length ? urls : null;
      return urls[0] ?? null;
    },
  };
}

/** A mask of the size of an image: painted over it, or a file. */
export function maskField(id) {
  const upload = imageField(id);
  const canvas = make("canvas", { className: "mask", width: 1, height: 1 });
  const brush = make("input", { type: "range", min: 2, max: 40, value: 14 });
  const clear = make("button", { type: "button" }, "Clear");
  const tools = make("div", { className: "row" }, make("label", {}, "Brush ", brush), clear);
  const painter = make("div", { hidden: true }, canvas, tools);
  const file = make("details", {}, make("summary", {}, "Or a file: white is filled"), upload.element);
  const element = make("div", {}, painter, file);
  const mask = document.createElement("canvas");
  let image = null;
  let painted = false;
  let last = null;

  const show = () => {
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 0.6;
    pen.globalCompositeOperation = "lighter";
    pen.drawImage(mask, 0, 0);
    pen.globalAlpha = 1;
    pen.globalCompositeOperation = "source-over";
  };
  const reset = () => {
    const pen = mask.getContext("2d");
    pen.fillStyle = "black";
    pen.fillRect(0, 0, mask.width, mask.height);
    painted = false;
    show();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * canvas.width,
      ((event.clientY - box.top) / box.height) * canvas.height,
    ];
  };
  const paint = (event) => {
    const pen = mask.getContext("2d");
    const point = at(event);
    pen.strokeStyle = pen.fillStyle = "white";
    pen.lineWidth = (canvas.width * brush.value) / 100;
    pen.beginPath();
    pen.arc(...point, pen.lineWidth / 2, 0, 2 * Math.PI);
    pen.fill();
    pen.beginPath();
    pen.moveTo(...(last ?? point));
    pen.lineTo(...point);
    pen.stroke();
    last = point;
    painted = true;
    show();
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = null;
    paint(event);
  };
  canvas.onpointermove = (event) => event.buttons && paint(event);
  clear.onclick = reset;
  return {
    element,
    add: upload.add,
    /** Takes the image to paint over; files that no browser shows leave the upload. */
    follow: (files) => {
      painter.hidden = true;
      painted = false;
      image = null;
      if (!files.length) return;
      const loading = make("img", { src: URL.createObjectURL(files[0]) });
      image = loading;
      loading.onload = () => {
        if (image !== loading) return; // another was chosen while it loaded
        canvas.width = mask.width = image.naturalWidth;
        canvas.height = mask.height = image.naturalHeight;
        reset();
        painter.hidden = false;
      };
    },
    value: async () => (await upload.value()) ?? (painted ? mask.toDataURL("image/png") : null),
  };
}
