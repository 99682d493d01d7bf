// Read a safetensors file: the metadata of its header, and its tensors as Float32Array.

/**
 * @param {ArrayBuffer} buffer content of the file
 * @returns {{metadata: Object<string, string>, tensors: Object<string, Float32Array>}}
 *   the tensors of floating-point numbers, in float32
 */
export function readSafetensors(buffer) {
  const view = new DataView(buffer);
  const length = Number(view.getBigUint64(0, true));
  if (8 + length > buffer.byteLength) {
    throw new Error("The weights are not a complete safetensors file. Reload the page.");
  }
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, data_offsets: [start, end] }] of Object.entries(entries)) {
    const bytes = buffer.slice(8 + length + start, 8 + length + end);
    if (dtype === "F32") tensors[name] = new Float32Array(bytes);
    if (dtype === "F16") tensors[name] = Float32Array.from(new Uint16Array(bytes), halfToNumber);
  }
  return { metadata, tensors };
}

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
