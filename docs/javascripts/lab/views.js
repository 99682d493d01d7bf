// Draw images, maps and filters on canvases.

import { SIDE } from "./network.js";

// From the color map viridis at equal steps, as the library's figures use it.
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37],
];
const SIGNED = {
  light: { negative: [0, 114, 178], zero: [255, 255, 255], positive: [213, 94, 0] },
  dark: { negative: [86, 180, 233], zero: [24, 26, 34], positive: [230, 159, 0] },
};
const GRAY = 128;

const isDark = () => document.body.dataset.mdColorScheme === "slate";

const mix = (first, second, part) => first.map((value, k) => value + (second[k] - value) * part);

/** Return the color of a value in [0, 1]. */
export function viridis(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return mix(VIRIDIS[low], VIRIDIS[low + 1], place - low);
}

/** Return the color of a value in [-1, 1]; that of 0 is the color of the background. */
export function signedColor(value) {
  const { negative, zero, positive } = SIGNED[isDark() ? "dark" : "light"];
  return mix(zero, value < 0 ? negative : positive, Math.min(Math.abs(value), 1));
}

const markColor = () => SIGNED[isDark() ? "dark" : "light"].positive;

/** Write a number or a text with a minus sign in place of each hyphen. */
export const minus = (text) => text.replaceAll("-", "−");

/** Return a color as text for CSS. */
export const css = (color) => `rgb(${color.map(Math.round).join(" ")})`;

/** Draw a picture of `width` pixels in each row, one color for each position. */
export function draw(canvas, width, count, colorOf) {
  canvas.width = width;
  canvas.height = count / width;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, count / width);
  for (let place = 0; place < count; place++) {
    image.data.set(colorOf(place), place * 4);
    image.data[place * 4 + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Draw an image, values (32, 32, 3). */
export function drawPixels(canvas, pixels) {
  draw(canvas, SIDE, SIDE * SIDE, (place) => pixels.subarray(place * 3, place * 3 + 3));
}

/** Draw values with sign (3, side, side) as colors around gray, relative to `largest`. */
export function drawSignedColors(canvas, values, side, largest) {
  const plane = side * side;
  const color = (value) => GRAY + (127 * value) / (largest || 1);
  draw(canvas, side, plane, (place) => [0, 1, 2].map((k) => color(values[k * plane + place])));
}

/** Draw feature maps (channels, side, side) as tiles, all on the same scale; mark one of them. */
export function drawTiles(canvas, values, { channels, side }, columns, largest, marked) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.parentElement.clientWidth;
  const pitch = width / columns;
  const gap = 2;
  const rows = Math.ceil(channels / columns);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(rows * pitch * scale);
  canvas.style.height = `${rows * pitch}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.imageSmoothingEnabled = false;
  const tile = document.createElement("canvas");
  const plane = side * side;
  for (let channel = 0; channel < channels; channel++) {
    const start = channel * plane;
    draw(tile, side, plane, (place) => signedColor(values[start + place] / (largest || 1)));
    const left = (channel % columns) * pitch + gap;
    const top = Math.floor(channel / columns) * pitch + gap;
    context.drawImage(tile, left, top, pitch - 2 * gap, pitch - 2 * gap);
    const isMarked = channel === marked;
    context.lineWidth = isMarked ? 3 : 1;
    context.strokeStyle = css(isMarked ? markColor() : [GRAY, GRAY, GRAY]);
    context.strokeRect(left, top, pitch - 2 * gap, pitch - 2 * gap);
  }
}

/**
 * Draw the image with the field of a unit: `clipped` and `unclipped` are pairs of the first and last
 * pixel along the rows and the columns.
 */
export function drawField(canvas, pixels, clipped, unclipped) {
  const size = 640;
  // The image and the field, with a margin of a pixel, and in the center of the longer axis.
  const ranges = unclipped.map(([first, last]) => [Math.min(0, first), Math.max(SIDE - 1, last)]);
  const span = 3 + Math.max(...ranges.map(([first, last]) => last - first));
  const scale = size / span;
  const [above, before] = ranges.map(([first, last]) => (span - (last - first + 1)) / 2 - first);
  const rectangle = ([[top, bottom], [left, right]]) =>
    [left + before, top + above, right - left + 1, bottom - top + 1].map((value) => value * scale);
  const whole = rectangle([[0, SIDE - 1], [0, SIDE - 1]]);
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const image = document.createElement("canvas");
  drawPixels(image, pixels);
  context.drawImage(image, ...whole);
  context.save(); // fade what the unit does not see
  context.beginPath();
  context.rect(...whole);
  context.rect(...rectangle(clipped));
  context.clip("evenodd");
  context.fillStyle = isDark() ? "rgb(20 22 30 / 65%)" : "rgb(255 255 255 / 65%)";
  context.fillRect(0, 0, size, size);
  context.restore();
  const outline = (color, width, dash, box) => {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.strokeRect(...rectangle(box));
  };
  const mark = css(markColor());
  outline(mark, 4, [14, 10], unclipped);
  outline("#fff", 9, [], clipped);
  outline(mark, 5, [], clipped);
}

/** Place a box over a frame of `side` x `side` positions. */
export function placeBox(box, side, [top, bottom], [left, right]) {
  const percent = (value) => `${(100 * value) / side}%`;
  Object.assign(box.style, {
    left: percent(left), top: percent(top),
    width: percent(right - left + 1), height: percent(bottom - top + 1),
  });
}

/** Return the position (row, column) of a pointer event on a frame of `side` x `side` positions. */
export function positionOf(event, frame, side) {
  const { left, top, width, height } = frame.getBoundingClientRect();
  const index = (offset, length) =>
    Math.min(Math.max(Math.floor((offset / length) * side), 0), side - 1);
  return [index(event.clientY - top, height), index(event.clientX - left, width)];
}

/** Return the movement (down, right) of an arrow key, or null for another key. */
export function arrow(key) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  return steps[key] ?? null;
}

/** Create an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}
