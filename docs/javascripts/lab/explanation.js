// What the network says about an image: class activation maps and test-time augmentation.

import { maximumIndices } from "./operations.js";
import { SIDE } from "./network.js";

/**
 * Compute the HiResCAM of a class (Draelos and Carin, 2020) in closed form.
 *
 * After the last residual block come a global maximum and a linear layer without a bias. The gradient
 * of a logit is therefore the weight of the head at the position of each channel's maximum, and 0
 * elsewhere: the map adds up weight times maximum at these positions, and sums to the logit.
 *
 * @returns {Float32Array} of 4 x 4 positions, with sign
 */
export function hiResCam(network, outputs, target) {
  const { channels, side } = network.layers[network.mapLayer];
  const values = outputs[network.mapLayer];
  const map = new Float64Array(side * side);
  maximumIndices(values, channels, side, side).forEach((index, channel) => {
    map[index % (side * side)] += network.headWeights[target * channels + channel] * values[index];
  });
  return Float32Array.from(map);
}

/**
 * Scale the positive part of a map (side, side) to the size of the image by bilinear interpolation,
 * with a maximum of 1, as `compute_cams` does.
 *
 * @returns {Float32Array} (32, 32); all 0 if the map has no positive values
 */
export function enlargeMap(map, side) {
  const positive = map.map((value) => Math.max(value, 0));
  const weights = Array.from({ length: SIDE }, (_, place) => {
    const center = Math.max(((place + 0.5) * side) / SIDE - 0.5, 0);
    const low = Math.floor(center);
    return [low, Math.min(low + 1, side - 1), center - low];
  });
  const large = new Float32Array(SIDE * SIDE);
  weights.forEach(([top, bottom, down], y) => {
    weights.forEach(([left, right, across], x) => {
      const row = (at) =>
        positive[at * side + left] * (1 - across) + positive[at * side + right] * across;
      large[y * SIDE + x] = row(top) * (1 - down) + row(bottom) * down;
    });
  });
  const largest = large.reduce((a, b) => Math.max(a, b), 0);
  return largest > 0 ? large.map((value) => value / largest) : large;
}

// Shift (right, down), whether mirrored, and weight in the mean.
export const VIEWS = [
  { shift: 0, mirrored: false, weight: 1 / 4, name: "image" },
  { shift: 0, mirrored: true, weight: 1 / 4, name: "mirrored" },
  { shift: -1, mirrored: false, weight: 1 / 8, name: "up, left" },
  { shift: -1, mirrored: true, weight: 1 / 8, name: "up, left, mirrored" },
  { shift: 1, mirrored: false, weight: 1 / 8, name: "down, right" },
  { shift: 1, mirrored: true, weight: 1 / 8, name: "down, right, mirrored" },
];

/**
 * Return a view of an image, Uint8 values (32, 32, 3): shifted by one pixel with a reflected border,
 * and then mirrored.
 */
export function viewOf(pixels, { shift, mirrored }) {
  const view = new Uint8ClampedArray(pixels.length);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const from = reflect(y - shift) * SIDE + reflect((mirrored ? SIDE - 1 - x : x) - shift);
      for (let k = 0; k < 3; k++) view[(y * SIDE + x) * 3 + k] = pixels[from * 3 + k];
    }
  }
  return view;
}

/** Reflect a coordinate at the borders of the image, without repeating the border. */
export function reflect(place) {
  const last = SIDE - 1;
  const distance = Math.abs(place) % (2 * last);
  return Math.min(distance, 2 * last - distance);
}

/** Average the logits of the six views, in the order of `VIEWS`. */
export function meanOfViews(logits) {
  return Array.from(logits[0], (_, k) =>
    VIEWS.reduce((sum, view, number) => sum + view.weight * logits[number][k], 0),
  );
}
