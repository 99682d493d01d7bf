// The panels inside the network: a unit with its receptive field and gradient, feature maps, filters.

import { receptiveFields, region } from "./fields.js";
import { SIDE } from "./network.js";
import * as views from "./views.js";

const find = (name) => document.getElementById(`lab-${name}`);
const KINDS = {
  Conv: "convolution 3 x 3", MaxPool: "max pooling", ReLU: "ReLU", BatchNorm: "BatchNorm",
  Add: "sum of the residual block", Linear: "linear, logits",
};
const largestOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

export class Inside {
  /** The chosen unit; see `writeAddress`. */
  unit = { layer: "residual1", channel: 0, row: 8, column: 8 };
  #network;
  #fields;
  #changed;
  #current = null; // pixels, input and outputs
  #columns = 1; // of the tiles

  /** @param {function(): void} changed called when the user chooses a unit */
  constructor(network, changed) {
    this.#network = network;
    this.#fields = receptiveFields(network.layers);
    this.#changed = changed;
    this.#makeLayers();
    this.#makeFilters();
    this.#listen();
  }

  /** Show the units of an image. */
  show(pixels, input, outputs) {
    this.#current = { pixels, input, outputs };
    this.#draw();
  }

  /** Draw again, after the window or the colors have changed. */
  redraw() {
    if (this.#current) this.#draw();
  }

  get #number() {
    return this.#network.layers.findIndex(({ name }) => name === this.unit.layer);
  }

  /** Change the unit, within the limits of its layer, and show it. */
  choose(change) {
    const unit = { ...this.unit, ...change };
    const { channels, side } = this.#network.layers.find(({ name }) => name === unit.layer);
    const clamp = (value, size) => Math.min(Math.max(Math.trunc(value) || 0, 0), size - 1);
    unit.channel = clamp(unit.channel, channels);
    unit.row = clamp(unit.row, side);
    unit.column = clamp(unit.column, side);
    this.unit = unit;
    this.redraw();
    this.#changed();
  }

  // --- drawing ------------------------------------------------------------------------------------

  #draw() {
    const layerNumber = this.#number;
    const layer = this.#network.layers[layerNumber];
    const { channel, row, column } = this.unit;
    const { pixels, input, outputs } = this.#current;
    const values = outputs[layerNumber];
    const largest = largestOf(values);
    const { side, channels } = layer;
    const plane = side * side;
    const index = channel * plane + row * side + column;
    this.#showControls(layer);

    const map = values.subarray(channel * plane, (channel + 1) * plane);
    const color = (place) => views.signedColor(map[place] / (largest || 1));
    views.draw(find("unit-map"), side, plane, color);
    views.placeBox(find("unit-cursor"), side, [row, row], [column, column]);

    const field = this.#fields[layerNumber];
    const clipped = [region(field, row), region(field, column)];
    const unclipped = [region(field, row, false), region(field, column, false)];
    views.drawField(find("field"), pixels, clipped, unclipped);

    const gradient = this.#network.gradient(input, outputs, layerNumber, index);
    const steepest = largestOf(gradient);
    views.drawSignedColors(find("gradient"), gradient, SIDE, steepest);
    views.placeBox(find("gradient-box"), SIDE, ...clipped);
    find("unit-text").textContent = [
      `Unit (${row}, ${column}) of ${layer.name}, channel ${channel}:`,
      `activation ${number(values[index])}.`,
      describe(field, clipped, unclipped),
      `Largest gradient: ${number(steepest)}.`,
    ].join(" ");

    const width = find("maps-frame").clientWidth;
    const columns = (channels >= 64 ? 16 : 8) / (width < 560 ? 2 : 1);
    this.#columns = Math.min(columns, channels);
    views.drawTiles(find("maps"), values, layer, this.#columns, largest, channel);
    find("maps-text").textContent =
      `${channels} channels of ${side} x ${side} units. Orange: positive, blue: negative, all on the ` +
      `same scale up to ${largest.toPrecision(3)}.`;
    [...find("filters").children].forEach((button, filter) =>
      button.setAttribute("aria-pressed", layer.block === "prep" && filter === channel),
    );
  }

  #showControls({ channels, side }) {
    find("layer").value = this.unit.layer;
    for (const [name, value, size] of [
      ["channel", this.unit.channel, channels],
      ["unit-row", this.unit.row, side],
      ["unit-column", this.unit.column, side],
    ]) {
      const input = find(name);
      input.max = size - 1;
      if (Number(input.value) !== value || input.value === "") input.value = value;
    }
  }

  // --- controls -----------------------------------------------------------------------------------

  #makeLayers() {
    const groups = {};
    for (const { name, block, kind, channels, side } of this.#network.layers) {
      groups[block] ??= find("layer").appendChild(views.element("optgroup", { label: block }));
      const text = `${name}: ${KINDS[kind]}, ${channels} x ${side} x ${side}`;
      groups[block].append(views.element("option", { value: name }, text));
    }
  }

  #makeFilters() {
    const { "prep.0.weight": weights } = this.#network.tensors;
    const largest = largestOf(weights);
    for (let channel = 0; channel * 27 < weights.length; channel++) {
      const canvas = views.element("canvas");
      const button = views.element("button", { type: "button" }, canvas);
      button.setAttribute("aria-label", `Filter ${channel}`);
      views.drawSignedColors(canvas, weights.subarray(channel * 27, channel * 27 + 27), 3, largest);
      button.addEventListener("click", () => this.choose({ layer: "prep.0", channel }));
      find("filters").append(button);
    }
  }

  #listen() {
    const sideOf = () => this.#network.layers[this.#number].side;
    find("layer").addEventListener("change", ({ target }) => {
      // The unit nearest to the same place in the image.
      const before = sideOf();
      const after = this.#network.layers.find(({ name }) => name === target.value).side;
      const scaled = (place) => Math.floor(((place + 0.5) * after) / before);
      const { row, column } = this.unit;
      this.choose({ layer: target.value, row: scaled(row), column: scaled(column) });
    });
    const keys = { channel: "channel", "unit-row": "row", "unit-column": "column" };
    for (const [name, key] of Object.entries(keys)) {
      find(name).addEventListener("input", ({ target }) => {
        if (target.value !== "") this.choose({ [key]: Number(target.value) });
      });
      find(name).addEventListener("blur", () => this.redraw());
    }
    find("unit-frame").addEventListener("click", (event) => {
      const [row, column] = views.positionOf(event, find("unit-frame"), sideOf());
      this.choose({ row, column });
    });
    find("maps-frame").addEventListener("click", (event) => {
      // Pick the tile, and the unit inside of it.
      const { left, top, width } = find("maps").getBoundingClientRect();
      const pitch = width / this.#columns;
      const across = (event.clientX - left) / pitch;
      const down = (event.clientY - top) / pitch;
      const side = sideOf();
      this.choose({
        channel: Math.floor(down) * this.#columns + Math.floor(across),
        row: (down % 1) * side,
        column: (across % 1) * side,
      });
    });
    const onArrow = (name, move) =>
      find(name).addEventListener("keydown", (event) => {
        const step = views.arrow(event.key);
        if (!step) return;
        event.preventDefault();
        move(step);
      });
    onArrow("unit-frame", ([down, right]) =>
      this.choose({ row: this.unit.row + down, column: this.unit.column + right }),
    );
    onArrow("maps-frame", ([down, right]) => {
      const channel = this.unit.channel + down * this.#columns + right;
      const { channels } = this.#network.layers[this.#number];
      if (channel >= 0 && channel < channels) this.choose({ channel });
    });
  }
}

const number = (value) => views.minus(value.toPrecision(4));

/** Describe a receptive field in sentences. */
function describe({ size }, clipped, unclipped) {
  const ranges = ([rows, columns]) =>
    views.minus(`rows ${rows.join(" to ")}, columns ${columns.join(" to ")}.`);
  const isInside = String(clipped) === String(unclipped);
  const beyond = isInside ? "The field lies inside the image." : `Unclipped: ${ranges(unclipped)}`;
  return `Receptive field: ${size} x ${size} pixels. It reads ${ranges(clipped)} ${beyond}`;
}
