// The panels of the prediction: probabilities, class activation map, and the six views.

import { CLASSES } from "./constants.js";
import { enlargeMap, hiResCam, meanOfViews, viewOf, VIEWS } from "./explanation.js";
import { normalize, SIDE } from "./network.js";
import { softmax } from "./operations.js";
import { css, draw, drawPixels, element, minus, signedColor, viridis } from "./views.js";

const find = (name) => document.getElementById(`lab-${name}`);
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
const indexOfLargest = (values) => values.indexOf(Math.max(...values));

export class Prediction {
  /** The class to explain, or null for the predicted one. */
  target = null;
  #rows;
  #views;
  #changed;

  /** @param {function(): void} changed called when the user chooses a class */
  constructor(changed) {
    this.#changed = changed;
    this.#rows = CLASSES.map((name, number) => {
      const bar = element("span", { className: "lab-bar" });
      const value = element("span", { className: "lab-value" });
      const track = element("span", { className: "lab-track" }, bar);
      const label = element("span", { className: "lab-class" }, name);
      const button = element("button", { type: "button" }, label, track, value);
      button.addEventListener("click", () => {
        this.target = this.target === number ? null : number;
        this.#changed();
      });
      find("classes").append(button);
      return { button, bar, value };
    });
    this.#views = VIEWS.map(({ name, weight }) => {
      const canvas = element("canvas", { width: SIDE, height: SIDE });
      const answer = element("strong");
      const note = element("span", {}, `${name}, weight 1/${1 / weight}`);
      find("views").append(element("figure", {}, canvas, element("figcaption", {}, answer, note)));
      return { canvas, answer };
    });
    const opacity = find("opacity");
    const apply = () => (find("map").style.opacity = opacity.value / 100);
    opacity.addEventListener("input", apply);
    apply();
  }

  /** Show the probabilities, and the map of the chosen class. */
  show(network, pixels, outputs) {
    const probabilities = softmax(outputs.at(-1));
    const predicted = indexOfLargest(probabilities);
    const target = this.target ?? predicted;
    this.#rows.forEach(({ button, bar, value }, number) => {
      bar.style.width = `${100 * probabilities[number]}%`;
      value.textContent = percent(probabilities[number]);
      button.setAttribute("aria-pressed", number === target);
      button.classList.toggle("lab-predicted", number === predicted);
    });
    find("answer").textContent = `${CLASSES[predicted]}, ${percent(probabilities[predicted])}`;
    this.#showMap(network, pixels, outputs, target);
  }

  /** Describe the prediction in a sentence. */
  describe(outputs) {
    const probabilities = softmax(outputs.at(-1));
    const predicted = indexOfLargest(probabilities);
    return `Prediction: ${CLASSES[predicted]}, ${percent(probabilities[predicted])}.`;
  }

  #showMap(network, pixels, outputs, target) {
    const { side } = network.layers[network.mapLayer];
    const map = hiResCam(network, outputs, target);
    const large = enlargeMap(map, side);
    drawPixels(find("map-image"), pixels);
    draw(find("map"), SIDE, SIDE * SIDE, (place) => viridis(large[place]));
    const logit = minus(outputs.at(-1)[target].toFixed(2));
    find("map-text").textContent = map.some((value) => value > 0)
      ? `Evidence for ${CLASSES[target]}: logit ${logit}.`
      : `There is no positive evidence for ${CLASSES[target]}: logit ${logit}.`;
    const largest = map.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const cells = Array.from(map, (value) => {
      const cell = element("span", {}, minus(value.toFixed(2)));
      // Less than half of the color, so that the number stays readable.
      cell.style.background = css(signedColor((0.4 * value) / (largest || 1)));
      return cell;
    });
    find("grid").replaceChildren(...cells);
    const listed = cells.map((cell) => cell.textContent).join(", ");
    find("grid").setAttribute("aria-label", `Map, row by row: ${listed}`);
  }

  /**
   * Show the views and their mean. Between the views the page stays responsive.
   *
   * @param {function(Float32Array): Float32Array[]} forward from the input to the outputs of all layers
   * @param {function(): boolean} isOutdated whether the image has changed meanwhile
   */
  async showViews(forward, pixels, isOutdated) {
    const logits = [];
    for (const [number, view] of VIEWS.entries()) {
      const { canvas, answer } = this.#views[number];
      const seen = viewOf(pixels, view);
      logits.push(forward(normalize(seen)).at(-1));
      drawPixels(canvas, seen);
      const probabilities = softmax(logits.at(-1));
      const best = indexOfLargest(probabilities);
      answer.textContent = `${CLASSES[best]}, ${percent(probabilities[best])}`;
      await new Promise((resolve) => setTimeout(resolve));
      if (isOutdated()) return;
    }
    const mean = softmax(meanOfViews(logits));
    const order = mean.map((_, number) => number).sort((a, b) => mean[b] - mean[a]);
    const best = order.slice(0, 3).map((number) => `${CLASSES[number]} ${percent(mean[number])}`);
    find("mean").textContent = `Mean of the six views: ${best.join(", ")}.`;
  }
}
