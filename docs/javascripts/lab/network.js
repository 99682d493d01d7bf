// The custom ResNet on one image: its layers under PyTorch's names, their outputs, and the gradient of
// any unit with respect to the input.

import { CLASSES, MEAN, STD } from "./constants.js";
import { readSafetensors } from "./safetensors.js";
import * as operations from "./operations.js";

export const SIDE = 32;
const EPSILON = 1e-5; // of BatchNorm

/** Load the network from a safetensors file that `CustomResNet.save_pretrained` has written. */
export async function loadNetwork(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`The weights are missing (${response.status}, ${address}).`);
  return new Network(await response.arrayBuffer());
}

/** Normalize an image, Uint8 values (32, 32, 3), to the network's input: Float32Array (3, 32, 32). */
export function normalize(pixels) {
  const plane = SIDE * SIDE;
  const input = new Float32Array(3 * plane);
  for (let place = 0; place < plane; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = pixels[place * 3 + channel] / 255;
      input[channel * plane + place] = (value - MEAN[channel]) / STD[channel];
    }
  }
  return input;
}

/**
 * Attributes: `layers`, each with `name`, `kind`, `block`, `channels`, `side`, the `source` (number
 * of the layer whose output it receives, -1 for the image), and `size`, `stride` and `padding` of its
 * window; `headWeights` (classes, channels), scaled; `training`, the origin of the weights.
 */
export class Network {
  constructor(buffer) {
    const { metadata, tensors } = readSafetensors(buffer);
    const options = JSON.parse(metadata["cifar_resnet.arguments"]);
    this.training = JSON.parse(metadata["cifar_resnet.training"]);
    if (options.norm_first || options.residual2 || options.activation !== "relu") {
      throw new Error("Expected a network with ReLU before BatchNorm and without residual2.");
    }
    if (options.in_channels !== 3 || options.num_classes !== CLASSES.length) {
      throw new Error(`Expected a network with 3 input channels and ${CLASSES.length} classes.`);
    }
    this.tensors = tensors;
    this.layers = [];
    this.channels = 3;
    this.side = SIDE;
    const width = options.width;
    this.#block("prep", "prep", width);
    this.#block("layer1", "layer1", 2 * width, 2);
    this.#residual("residual1", 2 * width);
    this.#block("layer2", "layer2", 4 * width, 2);
    this.#block("layer3", "layer3", 8 * width, 2);
    this.#residual("residual3", 8 * width);
    this.mapLayer = this.layers.length - 1; // its class activation map is in closed form
    this.#layer("pool", "pool", "MaxPool", { size: 4, stride: 4 });
    this.headWeights = tensors["head.weight"].map((weight) => weight * options.head_scale);
    this.channels = CLASSES.length;
    this.#layer("head", "head", "Linear", {});
  }

  /** Return the outputs of all layers, by number. The last one holds the logits. */
  forward(input) {
    const outputs = [];
    for (const layer of this.layers) {
      const values = layer.source < 0 ? input : outputs[layer.source];
      outputs.push(this.#compute(layer, values, outputs));
    }
    return outputs;
  }

  /**
   * Compute the gradient of a unit with respect to the network's input.
   *
   * @param {number} number of the layer
   * @param {number} unit index into the layer's output
   * @returns {Float32Array} (3, 32, 32)
   */
  gradient(input, outputs, number, unit) {
    const gradients = Array(number + 1).fill(null);
    gradients[number] = new Float32Array(outputs[number].length);
    gradients[number][unit] = 1;
    for (let current = number; current >= 0; current--) {
      const layer = this.layers[current];
      const received = gradients[current];
      if (received === null) continue; // beside the path, such as the rest of a residual block
      const pass = (source, values) => {
        gradients[source] = gradients[source] ? operations.add(gradients[source], values) : values;
      };
      if (layer.kind === "Add") pass(layer.skip, received);
      const values = layer.source < 0 ? input : outputs[layer.source];
      const passed = this.#backward(layer, values, received);
      if (layer.source < 0) return passed;
      pass(layer.source, passed);
    }
    throw new Error(`Layer ${number} does not depend on the image.`);
  }

  #compute(layer, values, outputs) {
    switch (layer.kind) {
      case "Conv":
        return operations.convolve(
          values, layer.weights, layer.inputs, layer.channels, layer.side,
        );
      case "MaxPool":
        return Float32Array.from(this.#indices(layer, values), (index) => values[index]);
      case "ReLU":
        return values.map((value) => (value > 0 ? value : 0));
      case "BatchNorm":
        return operations.affine(values, layer.scale, layer.shift);
      case "Add":
        return operations.add(values, outputs[layer.skip]);
      case "Linear":
        return Float32Array.from({ length: layer.channels }, (_, output) => {
          let sum = 0;
          const start = output * values.length;
          for (let k = 0; k < values.length; k++) sum += this.headWeights[start + k] * values[k];
          return sum;
        });
    }
  }

  #backward(layer, values, received) {
    switch (layer.kind) {
      case "Conv":
        return operations.convolve(
          received, layer.transposed, layer.channels, layer.inputs, layer.side,
        );
      case "MaxPool": {
        const passed = new Float32Array(values.length);
        this.#indices(layer, values).forEach((index, unit) => (passed[index] = received[unit]));
        return passed;
      }
      case "ReLU":
        return received.map((value, place) => (values[place] > 0 ? value : 0));
      case "BatchNorm":
        return operations.affine(received, layer.scale);
      case "Add":
        return received;
      case "Linear":
        return Float32Array.from(values, (_, k) => {
          let sum = 0;
          for (let output = 0; output < layer.channels; output++) {
            sum += this.headWeights[output * values.length + k] * received[output];
          }
          return sum;
        });
    }
  }

  #indices(layer, values) {
    const side = layer.side * layer.size;
    return operations.maximumIndices(values, layer.channels, side, layer.size);
  }

  // --- construction -------------------------------------------------------------------------------

  #layer(name, block, kind, more) {
    if (kind === "MaxPool") this.side /= more.size;
    if (kind === "Linear") this.side = 1;
    const source = this.layers.length - 1;
    const common = { name, block, kind, source, channels: this.channels, side: this.side };
    this.layers.push({ size: 1, stride: 1, padding: 0, ...common, ...more });
  }

  #block(name, block, outputs, pool = 0) {
    const inputs = this.channels;
    const weights = this.tensors[`${name}.0.weight`];
    this.channels = outputs;
    this.#layer(`${name}.0`, block, "Conv", {
      inputs,
      size: 3,
      padding: 1,
      weights: operations.packWeights(weights, inputs, outputs),
      transposed: operations.packWeights(
        operations.transposeWeights(weights, inputs, outputs), outputs, inputs,
      ),
    });
    let number = 1;
    if (pool) this.#layer(`${name}.${number++}`, block, "MaxPool", { size: pool, stride: pool });
    this.#layer(`${name}.${number++}`, block, "ReLU", {});
    const [weight, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
      (each) => Float64Array.from(this.tensors[`${name}.${number}.${each}`]),
    );
    const scale = weight.map((value, k) => value / Math.sqrt(variance[k] + EPSILON));
    const shift = bias.map((value, k) => value - mean[k] * scale[k]);
    this.#layer(`${name}.${number}`, block, "BatchNorm", { scale, shift });
  }

  #residual(name, channels) {
    const skip = this.layers.length - 1;
    this.#block(`${name}.block1`, name, channels);
    this.#block(`${name}.block2`, name, channels);
    this.#layer(name, name, "Add", { skip });
  }
}
