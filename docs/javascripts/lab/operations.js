// The operations of the network on one image, forward and backward. Values are Float32Array of shape
// (channels, side, side); sums are accumulated in double precision.

/**
 * Reorder the weights (outputs, inputs, 3, 3) of a convolution for `convolve`: blocks of four
 * output channels, (outputs / 4, inputs, 9, 4), filled up with zeros.
 */
export function packWeights(weights, inputs, outputs) {
  const packed = new Float32Array(Math.ceil(outputs / 4) * inputs * 36);
  for (let output = 0; output < outputs; output++) {
    for (let input = 0; input < inputs; input++) {
      for (let tap = 0; tap < 9; tap++) {
        const block = ((output >> 2) * inputs + input) * 9 + tap;
        packed[block * 4 + (output & 3)] = weights[(output * inputs + input) * 9 + tap];
      }
    }
  }
  return packed;
}

/** Return the weights of the convolution that computes the gradient of a convolution's input. */
export function transposeWeights(weights, inputs, outputs) {
  const transposed = new Float32Array(weights.length);
  for (let output = 0; output < outputs; output++) {
    for (let input = 0; input < inputs; input++) {
      for (let tap = 0; tap < 9; tap++) {
        transposed[(input * outputs + output) * 9 + 8 - tap] =
          weights[(output * inputs + input) * 9 + tap];
      }
    }
  }
  return transposed;
}

/** Convolve with kernels of 3 x 3, stride 1, padding 1. `side` must be even. */
export function convolve(values, packed, inputs, outputs, side) {
  const padded = addBorder(values, inputs, side);
  const width = side + 2;
  const plane = side * side;
  const result = new Float32Array(outputs * plane);
  for (let first = 0; first < outputs; first += 4) {
    const count = Math.min(4, outputs - first);
    const weightsStart = first * inputs * 9;
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x += 2) {
        // Two neighboring positions of four channels: each value that is read is used several times.
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        let weight = weightsStart;
        let corner = y * width + x;
        for (let input = 0; input < inputs; input++) {
          for (let row = 0; row < 3; row++) {
            const place = corner + row * width;
            let left = padded[place];
            for (let tap = 1; tap < 4; tap++) {
              const right = padded[place + tap];
              const w0 = packed[weight];
              const w1 = packed[weight + 1];
              const w2 = packed[weight + 2];
              const w3 = packed[weight + 3];
              a0 += left * w0;
              a1 += left * w1;
              a2 += left * w2;
              a3 += left * w3;
              b0 += right * w0;
              b1 += right * w1;
              b2 += right * w2;
              b3 += right * w3;
              left = right;
              weight += 4;
            }
          }
          corner += width * width;
        }
        const sums = count === 4 ? null : [a0, a1, a2, a3, b0, b1, b2, b3];
        let target = first * plane + y * side + x;
        if (sums) {
          for (let k = 0; k < count; k++, target += plane) {
            result[target] = sums[k];
            result[target + 1] = sums[4 + k];
          }
        } else {
          result[target] = a0;
          result[target + 1] = b0;
          result[(target += plane)] = a1;
          result[target + 1] = b1;
          result[(target += plane)] = a2;
          result[target + 1] = b2;
          result[(target += plane)] = a3;
          result[target + 1] = b3;
        }
      }
    }
  }
  return result;
}

function addBorder(values, channels, side) {
  const width = side + 2;
  const padded = new Float32Array(channels * width * width);
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < side; y++) {
      const start = (channel * side + y) * side;
      const target = (channel * width + y + 1) * width + 1;
      for (let x = 0; x < side; x++) padded[target + x] = values[start + x];
    }
  }
  return padded;
}

/** Return for each window of `size` x `size` the index of its maximum, the first one of equals. */
export function maximumIndices(values, channels, side, size) {
  const smaller = side / size;
  const indices = new Int32Array(channels * smaller * smaller);
  let target = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < smaller; y++) {
      for (let x = 0; x < smaller; x++) {
        const corner = (channel * side + y * size) * side + x * size;
        let best = corner;
        for (let row = 0; row < size; row++) {
          for (let column = 0; column < size; column++) {
            const place = corner + row * side + column;
            if (values[place] > values[best]) best = place;
          }
        }
        indices[target++] = best;
      }
    }
  }
  return indices;
}

/** Return channel by channel `values * scale + shift`, the shift being 0 if it is not given. */
export function affine(values, scale, shift) {
  const result = new Float32Array(values.length);
  const plane = values.length / scale.length;
  for (let channel = 0; channel < scale.length; channel++) {
    const factor = scale[channel];
    const constant = shift ? shift[channel] : 0;
    for (let place = channel * plane; place < (channel + 1) * plane; place++) {
      result[place] = values[place] * factor + constant;
    }
  }
  return result;
}

/** Return the sum of two arrays of the same length. */
export function add(first, second) {
  const result = new Float32Array(first.length);
  for (let place = 0; place < result.length; place++) result[place] = first[place] + second[place];
  return result;
}

/** Return the softmax of an array of numbers. */
export function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}
