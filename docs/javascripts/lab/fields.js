// Exact receptive fields: which pixels of the image each unit of a layer depends on.

import { SIDE } from "./network.js";

/**
 * Compute the receptive field of each layer from the windows of the layers before it.
 *
 * Unit u of a layer sees the pixels `u * jump - padding` to `u * jump - padding + size - 1` along each
 * axis of an image without borders.
 *
 * @returns {{size: number, jump: number, padding: number}[]} of each layer, the same along both axes
 */
export function receptiveFields(layers) {
  const fields = [];
  for (const layer of layers) {
    const { size, jump, padding } = fields[layer.source] ?? { size: 1, jump: 1, padding: 0 };
    // The other branch of a sum has the same jump and centers, and a smaller field.
    fields.push({
      size: size + (layer.size - 1) * jump,
      jump: jump * layer.stride,
      padding: padding + layer.padding * jump,
    });
  }
  return fields;
}

/** Return the first and the last pixel that a unit sees along an axis, both inclusive. */
export function region(field, unit, clip = true) {
  const first = unit * field.jump - field.padding;
  const last = first + field.size - 1;
  return clip ? [Math.max(first, 0), Math.min(last, SIDE - 1)] : [first, last];
}
