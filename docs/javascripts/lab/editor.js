// The image that the user chooses, paints on and changes with sliders.

import { RANGES } from "./address.js";
import { adjust, MEAN_COLOR, paint, readImage, UNCHANGED } from "./image.js";
import { SIDE } from "./network.js";
import { drawScene, SCENE_NAMES } from "./scenes.js";
import { arrow, drawPixels, element, placeBox, positionOf } from "./views.js";

const UNDO_STEPS = 50;
const LABELS = {
  right: "Shift right", down: "Shift down", blur: "Blur", noise: "Noise", brightness: "Brightness, %",
};
const find = (name) => document.getElementById(`lab-${name}`);

export class Editor {
  #cursor = [SIDE / 2, SIDE / 2]; // row, column
  #earlier = [];
  #original; // before it was painted on, for the eraser
  #base; // painted on, before the sliders
  #scene = null; // name of the example, null once it was painted on
  #sliders = { ...UNCHANGED };
  #changed;
  #frame = find("editor");
  #inputs = {};

  /** @param {function(): void} changed called after each change of the image */
  constructor(changed) {
    this.#changed = changed;
    this.#makeScenes();
    this.#makeSliders();
    this.#listenToFiles();
    this.#listenToBrush();
    find("blank").addEventListener("click", () => {
      this.#load(new Uint8ClampedArray(3 * SIDE * SIDE).fill(255), "An empty image: paint on it.");
      this.#frame.focus();
    });
    find("undo").addEventListener("click", () => this.#undo());
    find("reset").addEventListener("click", () => this.#reset());
  }

  /** Return the image that the network receives, values (32, 32, 3). */
  pixels() {
    return adjust(this.#base, this.#sliders);
  }

  /** Return the part of the lab's state that is about the image; see `writeAddress`. */
  get state() {
    return { scene: this.#scene, pixels: this.#base, sliders: this.#sliders };
  }

  /** Show the image of a state. */
  restore({ scene, pixels, sliders }) {
    this.#scene = scene;
    this.#original = scene === null ? pixels : drawScene(scene);
    this.#base = this.#original.slice();
    this.#sliders = { ...sliders };
    this.#cursor = [SIDE / 2, SIDE / 2];
    this.#earlier = [];
    this.#update();
  }

  // --- changes ------------------------------------------------------------------------------------

  #load(pixels, message, scene = null) {
    this.#remember();
    this.#original = pixels;
    this.#base = pixels.slice();
    this.#scene = scene;
    this.#sliders = { ...UNCHANGED };
    showMessage(message);
    this.#update();
  }

  #remember() {
    this.#earlier.push([this.#original, this.#base.slice(), this.#scene, { ...this.#sliders }]);
    if (this.#earlier.length > UNDO_STEPS) this.#earlier.shift();
  }

  #undo() {
    if (this.#earlier.length === 0) return;
    [this.#original, this.#base, this.#scene, this.#sliders] = this.#earlier.pop();
    this.#update();
  }

  #reset() {
    this.#remember();
    this.#base = this.#original.slice();
    const same = (name) => drawScene(name).every((value, place) => value === this.#original[place]);
    this.#scene = SCENE_NAMES.find(same) ?? null;
    this.#sliders = { ...UNCHANGED };
    this.#update();
  }

  #update() {
    for (const [name, { input, output }] of Object.entries(this.#inputs)) {
      input.value = this.#sliders[name];
      output.textContent = this.#sliders[name];
    }
    find("undo").disabled = this.#earlier.length === 0;
    for (const button of find("scenes").children) {
      button.setAttribute("aria-pressed", button.value === this.#scene);
    }
    this.#placeCursor();
    this.#changed();
  }

  // --- choosing -----------------------------------------------------------------------------------

  #makeScenes() {
    for (const name of SCENE_NAMES) {
      const canvas = element("canvas");
      const button = element("button", { type: "button", value: name, title: name }, canvas);
      button.setAttribute("aria-label", `Example: ${name}`);
      drawPixels(canvas, drawScene(name));
      button.addEventListener("click", () => this.#load(drawScene(name), "", name));
      find("scenes").append(button);
    }
  }

  #listenToFiles() {
    const read = async (file) => {
      try {
        const { pixels, description } = await readImage(file);
        this.#load(pixels, description);
      } catch (error) {
        showMessage(error.message);
      }
    };
    for (const name of ["file", "photo"]) {
      find(name).addEventListener("change", ({ target }) => {
        if (target.files.length) read(target.files[0]);
        target.value = ""; // so that the same file can be chosen again
      });
    }
    document.addEventListener("paste", ({ clipboardData }) => {
      if (clipboardData.files.length) read(clipboardData.files[0]);
    });
    for (const kind of ["dragover", "drop"]) {
      document.addEventListener(kind, (event) => {
        if (!event.dataTransfer.types.includes("Files")) return;
        event.preventDefault(); // the browser would leave the page and open the file
        if (event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
      });
    }
  }

  // --- sliders ------------------------------------------------------------------------------------

  #makeSliders() {
    for (const [name, [min, max, step]] of Object.entries(RANGES)) {
      const input = element("input", { type: "range", id: `lab-${name}`, min, max, step });
      const output = element("output");
      output.setAttribute("for", input.id);
      input.addEventListener("input", () => {
        this.#sliders[name] = Number(input.value);
        this.#update();
      });
      this.#inputs[name] = { input, output };
      find("sliders").append(element("label", {}, element("span", {}, LABELS[name]), input, output));
    }
  }

  // --- brush --------------------------------------------------------------------------------------

  get #tool() {
    return document.querySelector("input[name=lab-tool]:checked").value;
  }

  #listenToBrush() {
    let last = null; // position of the stroke, null between strokes
    this.#frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.#frame.setPointerCapture(event.pointerId);
      last = positionOf(event, this.#frame, SIDE);
      this.#begin();
      this.#stroke(last, last);
    });
    this.#frame.addEventListener("pointermove", (event) => {
      const position = positionOf(event, this.#frame, SIDE);
      if (last !== null && String(position) !== String(last)) {
        this.#stroke(last, position);
        last = position;
      } else if (last === null) {
        this.#cursor = position;
        this.#placeCursor();
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.#frame.addEventListener(name, () => (last = null));
    }
    this.#frame.addEventListener("keydown", (event) => this.#key(event));
    find("size").addEventListener("input", () => this.#placeCursor());
    for (const input of document.querySelectorAll("input[name=lab-tool]")) {
      input.addEventListener("change", () => this.#placeCursor());
    }
  }

  #begin() {
    this.#remember();
    if (this.#tool !== "shift") this.#scene = null;
  }

  #key(event) {
    const step = arrow(event.key);
    if (step) {
      const [down, right] = step;
      const clamp = (value) => Math.min(Math.max(value, 0), SIDE - 1);
      const next = [clamp(this.#cursor[0] + down), clamp(this.#cursor[1] + right)];
      if (this.#tool === "shift") {
        this.#begin();
        this.#shift(down, right);
      } else if (event.shiftKey) {
        this.#begin();
        this.#stroke(this.#cursor, next);
      }
      this.#cursor = next;
      this.#placeCursor();
    } else if ((event.key === " " || event.key === "Enter") && this.#tool !== "shift") {
      this.#begin();
      this.#stroke(this.#cursor, this.#cursor);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Apply the tool along a line between two positions (row, column). */
  #stroke([fromRow, fromColumn], [toRow, toColumn]) {
    this.#cursor = [toRow, toColumn];
    if (this.#tool === "shift") {
      this.#shift(toRow - fromRow, toColumn - fromColumn);
      return;
    }
    const hex = find("color").value;
    const source = {
      paint: [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)),
      cover: MEAN_COLOR,
      erase: this.#original,
    }[this.#tool];
    const steps = Math.max(Math.abs(toRow - fromRow), Math.abs(toColumn - fromColumn), 1);
    for (let step = 0; step <= steps; step++) {
      const row = Math.round(fromRow + ((toRow - fromRow) * step) / steps) - this.#sliders.down;
      const column =
        Math.round(fromColumn + ((toColumn - fromColumn) * step) / steps) - this.#sliders.right;
      paint(this.#base, column, row, this.#size, source);
    }
    this.#update();
  }

  #shift(down, right) {
    const clamp = (value, [low, high]) => Math.min(Math.max(value, low), high);
    this.#sliders.down = clamp(this.#sliders.down + down, RANGES.down);
    this.#sliders.right = clamp(this.#sliders.right + right, RANGES.right);
    this.#update();
  }

  get #size() {
    return Number(find("size").value);
  }

  #placeCursor() {
    const size = this.#tool === "shift" ? 1 : this.#size;
    const [first, second] = this.#cursor.map((place) => {
      const start = place - Math.floor((size - 1) / 2);
      return [Math.max(start, 0), Math.min(start + size, SIDE) - 1];
    });
    placeBox(find("cursor"), SIDE, first, second);
  }
}

/** Show a message to the user; hide it if the text is empty. */
export function showMessage(text) {
  find("message").textContent = text;
  find("message").hidden = text === "";
}
