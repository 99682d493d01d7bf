// The user's image: read and scaled as `cifar_resnet.predict` does, and changed by the sliders.

import { MEAN } from "./constants.js";
import { reflect } from "./explanation.js";
import { SIDE } from "./network.js";

const MOST_PIXELS = 50e6;

/** The color that becomes 0 when it is normalized. */
export const MEAN_COLOR = MEAN.map((value) => Math.round(255 * value));

/**
 * Read an image file: its central square, scaled to 32 x 32 pixels.
 *
 * @param {Blob} file
 * @returns {Promise<{pixels: Uint8ClampedArray, description: string}>} pixels (32, 32, 3)
 */
export async function readImage(file) {
  let bitmap;
  try {
    // Upright, and without color profiles, which the library ignores.
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new Error("This file is not an image that the browser can read. Try a PNG or JPEG file.");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw new Error(`The image has ${width} x ${height} pixels. Scale it down and try again.`);
  }
  const side = Math.min(width, height);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // transparent areas become white
  context.fillRect(0, 0, side, side);
  context.drawImage(bitmap, -Math.floor((width - side) / 2), -Math.floor((height - side) / 2));
  const { data } = context.getImageData(0, 0, side, side);
  const pixels = new Uint8ClampedArray(side * side * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    for (let k = 0; k < 3; k++) pixels[to++] = data[from + k];
  }
  const part = width === height ? "" : `the central ${side} x ${side} of `;
  return {
    pixels: resize(pixels, side),
    description: `Your image: ${part}${width} x ${height} pixels, scaled to ${SIDE} x ${SIDE}.`,
  };
}

/**
 * Scale a square image (side, side, 3) to 32 x 32 pixels: bicubic interpolation with antialiasing, with
 * the same integer arithmetic as Pillow's `resize`, first the rows and then the columns.
 */
export function resize(pixels, side) {
  if (side === SIDE) return pixels;
  const windows = resizingWindows(side);
  const narrow = resizeRows(pixels, side, side, windows); // (side, 32, 3)
  const turned = transposed(narrow, side, SIDE); // (32, side, 3)
  return transposed(resizeRows(turned, SIDE, side, windows), SIDE, SIDE);
}

const FIXED_POINT = 2 ** 22;

function resizingWindows(side) {
  const cubic = (x) => {
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  };
  const scale = side / SIDE;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: SIDE }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(Math.floor(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.floor(center + 2 * stretch + 0.5), side);
    const weights = Array.from({ length: end - first }, (_, k) =>
      cubic(Math.abs((k + first - center + 0.5) * (1 / stretch))),
    );
    const total = weights.reduce((a, b) => a + b, 0);
    const rounded = weights.map((weight) => {
      const value = (weight / total) * FIXED_POINT;
      return Math.trunc(value + (value < 0 ? -0.5 : 0.5));
    });
    return { first, weights: rounded };
  });
}

/** Scale each row of an image (rows, columns, 3) to 32 pixels. */
function resizeRows(pixels, rows, columns, windows) {
  const result = new Uint8ClampedArray(rows * SIDE * 3);
  for (let y = 0; y < rows; y++) {
    windows.forEach(({ first, weights }, x) => {
      for (let k = 0; k < 3; k++) {
        let sum = FIXED_POINT / 2;
        let place = (y * columns + first) * 3 + k;
        for (let tap = 0; tap < weights.length; tap++, place += 3) sum += pixels[place] * weights[tap];
        result[(y * SIDE + x) * 3 + k] = Math.floor(sum / FIXED_POINT);
      }
    });
  }
  return result;
}

function transposed(pixels, rows, columns) {
  const result = new Uint8ClampedArray(pixels.length);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      for (let k = 0; k < 3; k++) result[(x * rows + y) * 3 + k] = pixels[(y * columns + x) * 3 + k];
    }
  }
  return result;
}

/** Values of the sliders that leave the image unchanged. */
export const UNCHANGED = { right: 0, down: 0, blur: 0, noise: 0, brightness: 100 };

/**
 * Change an image (32, 32, 3).
 *
 * @param {object} sliders `right` and `down`: shift in pixels, with a reflected border. `blur`:
 *   standard deviation of a Gaussian in pixels. `brightness`: factor in percent. `noise`: standard
 *   deviation of the noise, of values from 0 to 255; it is the same noise each time.
 */
export function adjust(pixels, { right, down, blur, noise, brightness }) {
  let values = Float64Array.from(pixels, (_, place) => {
    const position = Math.floor(place / 3);
    const x = reflect((position % SIDE) - right);
    const y = reflect(Math.floor(position / SIDE) - down);
    return pixels[(y * SIDE + x) * 3 + (place % 3)];
  });
  if (blur > 0) values = blurred(blurred(values, blur, 1, SIDE), blur, SIDE, 1);
  const random = noise > 0 ? normalNumbers() : () => 0;
  // The conversion rounds, and clips to 0 to 255.
  return Uint8ClampedArray.from(values, (value) => (value * brightness) / 100 + noise * random());
}

/** Blur along one axis, with a reflected border; the steps are distances between positions. */
function blurred(values, deviation, step, otherStep) {
  const radius = Math.ceil(3 * deviation);
  const weights = Array.from({ length: 2 * radius + 1 }, (_, k) =>
    Math.exp(-((k - radius) ** 2) / (2 * deviation ** 2)),
  );
  const total = weights.reduce((a, b) => a + b, 0);
  const result = new Float64Array(values.length);
  for (let line = 0; line < SIDE; line++) {
    for (let place = 0; place < SIDE; place++) {
      for (let k = 0; k < 3; k++) {
        let sum = 0;
        weights.forEach((weight, tap) => {
          const from = reflect(place + tap - radius) * step + line * otherStep;
          sum += weight * values[from * 3 + k];
        });
        result[(place * step + line * otherStep) * 3 + k] = sum / total;
      }
    }
  }
  return result;
}

/** Return a function that returns nearly normal random numbers, the same ones in each browser. */
function normalNumbers() {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  return () => Array.from({ length: 12 }, uniform).reduce((a, b) => a + b, -6);
}

/** Paint a square of `size` pixels around (x, y), with a color or with the values of an image. */
export function paint(pixels, x, y, size, source) {
  const before = Math.floor((size - 1) / 2);
  for (let row = Math.max(y - before, 0); row < Math.min(y - before + size, SIDE); row++) {
    for (let column = Math.max(x - before, 0); column < Math.min(x - before + size, SIDE); column++) {
      const place = (row * SIDE + column) * 3;
      for (let k = 0; k < 3; k++) {
        pixels[place + k] = source.length === 3 ? source[k] : source[place + k];
      }
    }
  }
}
