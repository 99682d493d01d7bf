// The state of the lab as the part of the page's address after "#".

import { CLASSES } from "./constants.js";
import { UNCHANGED } from "./image.js";
import { SIDE } from "./network.js";
import { SCENE_NAMES } from "./scenes.js";

/** Smallest and largest value, and step, of each slider. */
export const RANGES = {
  right: [-16, 16, 1],
  down: [-16, 16, 1],
  blur: [0, 4, 0.1],
  noise: [0, 80, 1],
  brightness: [0, 250, 1],
};

/**
 * Write a state: `scene`, or `pixels` of an edited image; `sliders`; the explained class `target`, or
 * null for the predicted one; and a unit as `layer`, `channel`, `row` and `column`.
 */
export function writeAddress({ scene, pixels, sliders, target, unit }) {
  const parts = [scene === null ? `pixels=${toBase64(pixels)}` : `image=${scene}`];
  for (const [name, value] of Object.entries(sliders)) {
    if (value !== UNCHANGED[name]) parts.push(`${name}=${value}`);
  }
  if (target !== null) parts.push(`class=${CLASSES[target]}`);
  parts.push(`layer=${unit.layer}`, `unit=${unit.channel},${unit.row},${unit.column}`);
  return parts.join("&");
}

/**
 * Read a state from an address, and check it.
 *
 * @param {string} text the address after "#"
 * @param {object[]} layers of the network
 * @returns the state, with null where the address does not mention the image or the unit
 */
export function readAddress(text, layers) {
  const given = Object.fromEntries(new URLSearchParams(text.replaceAll("+", "%2B")));
  const known = ["image", "pixels", "class", "layer", "unit", ...Object.keys(RANGES)];
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) throw new Error(`it contains the unknown field "${name}"`);
  }
  const scene = given.image ?? null;
  if (scene !== null) check("image", scene, SCENE_NAMES);
  const pixels = given.pixels === undefined ? null : fromBase64(given.pixels);
  if (scene !== null && pixels !== null) throw new Error('it contains both "image" and "pixels"');
  const sliders = { ...UNCHANGED };
  for (const [name, [low, high]] of Object.entries(RANGES)) {
    if (given[name] === undefined) continue;
    sliders[name] = number(name, given[name], low, high);
  }
  for (const name of ["right", "down"]) sliders[name] = Math.round(sliders[name]);
  if (given.class !== undefined) check("class", given.class, CLASSES);
  const target = given.class === undefined ? null : CLASSES.indexOf(given.class);
  return { scene, pixels, sliders, target, unit: readUnit(given, layers) };
}

function readUnit({ layer: name, unit = "0,0,0" }, layers) {
  if (name === undefined) return null;
  const layer = layers.find((each) => each.name === name);
  if (!layer) throw new Error(`there is no layer "${name}"`);
  const limits = [layer.channels, layer.side, layer.side];
  const indices = unit.split(",");
  if (indices.length !== 3) throw new Error(`unit must be channel,row,column, not "${unit}"`);
  const [channel, row, column] = indices.map((index, k) =>
    Math.trunc(number("unit", index, 0, limits[k] - 1)),
  );
  return { layer: name, channel, row, column };
}

function check(name, value, choices) {
  if (!choices.includes(value)) {
    throw new Error(`${name} must be one of ${choices.join(", ")}, not "${value}"`);
  }
}

function number(name, text, low, high) {
  const value = text.trim() === "" ? NaN : Number(text);
  if (!(value >= low && value <= high)) {
    throw new Error(`${name} must be a number from ${low} to ${high}, not "${text}"`);
  }
  return value;
}

function toBase64(pixels) {
  const text = btoa(String.fromCharCode(...pixels)); // 3072 values: few enough for arguments
  return text.replaceAll("+", "-").replaceAll("/", "_");
}

function fromBase64(text) {
  const length = 3 * SIDE * SIDE;
  let decoded;
  try {
    decoded = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  } catch {
    throw new Error("its image is damaged");
  }
  if (decoded.length !== length) {
    throw new Error(`its image has ${decoded.length} values, not ${length}; it may have been cut off`);
  }
  return Uint8ClampedArray.from(decoded, (letter) => letter.charCodeAt(0));
}
