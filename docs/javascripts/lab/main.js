// The page "Lab": load the network, and keep image, prediction, units and address in step.

import { readAddress, writeAddress } from "./address.js";
import { Editor, showMessage } from "./editor.js";
import { UNCHANGED } from "./image.js";
import { Inside } from "./inside.js";
import { loadNetwork, normalize } from "./network.js";
import { Prediction } from "./prediction.js";
import { drawPixels } from "./views.js";

const IDLE_MILLISECONDS = 150; // before what takes longer than a frame is computed
const WEIGHTS = new URL("quarter.safetensors", import.meta.url);
const START = { scene: "ship", pixels: null, sliders: { ...UNCHANGED }, target: null, unit: null };
const find = (name) => document.getElementById(`lab-${name}`);

try {
  start(await loadNetwork(WEIGHTS));
} catch (error) {
  find("status").textContent = `The network cannot be loaded: ${error.message}`;
  throw error;
}

function start(network) {
  const editor = new Editor(changed);
  const prediction = new Prediction(changed);
  const inside = new Inside(network, unitChanged);
  let version = 0; // of the image and the explained class
  let shown = null; // pixels, input and outputs of the image
  let frame = null;
  const times = []; // milliseconds of the passes since they were last shown
  let timer = null;
  let isNew = { image: false, unit: false }; // since the last call of `settle`
  let isRestoring = false;
  let isTouched = false; // the address is written after the first change by the user

  /** State whether everything on the page belongs to the same image. */
  function setSettled(value) {
    find("page").dataset.settled = value;
  }

  function changed() {
    version += 1;
    setSettled(false);
    isTouched ||= !isRestoring;
    frame ??= requestAnimationFrame(update);
  }

  function unitChanged() {
    isTouched ||= !isRestoring;
    isNew.unit = true;
    setSettled(false);
    wait();
  }

  function update() {
    frame = null;
    const pixels = editor.pixels();
    const input = normalize(pixels);
    const outputs = forward(input);
    shown = { pixels, input, outputs };
    drawPixels(find("image"), pixels);
    prediction.show(network, pixels, outputs);
    isNew.image = true;
    wait();
  }

  function forward(input) {
    const begin = performance.now();
    const outputs = network.forward(input);
    times.push(performance.now() - begin);
    return outputs;
  }

  function showTime() {
    const last = times.splice(0).sort((a, b) => a - b);
    const median = last[last.length >> 1];
    find("time").textContent =
      `On this device the network takes ${median.toFixed(0)} ms per image (median of ${last.length}).`;
  }

  function wait() {
    clearTimeout(timer);
    timer = setTimeout(settle, IDLE_MILLISECONDS);
  }

  /** Compute what takes longer than a frame, once the user pauses. */
  async function settle() {
    const { image, unit } = isNew;
    isNew = { image: false, unit: false };
    if (isTouched) history.replaceState(null, "", `#${writeAddress(state())}`);
    find("spoken").textContent = [
      image ? prediction.describe(shown.outputs) : "",
      unit ? find("unit-text").textContent : "",
    ].join(" ");
    if (!image) return setSettled(frame === null);
    inside.show(shown.pixels, shown.input, shown.outputs);
    const current = version;
    await prediction.showViews(forward, shown.pixels, () => version !== current);
    if (times.length) showTime();
    setSettled(version === current && !isNew.image && !isNew.unit);
  }

  const state = () => ({ ...editor.state, target: prediction.target, unit: inside.unit });

  function restore() {
    const text = location.hash.slice(1);
    if (shown !== null && !text.includes("=")) return; // the address of a heading
    let found = START;
    showMessage("");
    try {
      if (text.includes("=")) found = readAddress(text, network.layers);
    } catch (error) {
      showMessage(`The address cannot be restored: ${error.message}. The lab shows an example.`);
    }
    isRestoring = true;
    prediction.target = found.target;
    const hasImage = found.scene !== null || found.pixels !== null;
    editor.restore(hasImage ? found : { ...found, scene: START.scene });
    if (found.unit) inside.choose(found.unit);
    isRestoring = false;
  }

  find("link").addEventListener("click", async () => {
    history.replaceState(null, "", `#${writeAddress(state())}`);
    try {
      await navigator.clipboard.writeText(location.href);
      showMessage("The link to this state is copied.");
    } catch {
      showMessage("The address bar holds the link to this state. Copy it from there.");
    }
  });
  window.addEventListener("hashchange", restore);
  window.addEventListener("resize", () => inside.redraw());
  new MutationObserver(() => {
    if (shown) prediction.show(network, shown.pixels, shown.outputs);
    inside.redraw();
  }).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });

  find("accuracy").textContent = accuracyOf(network.training);
  find("status").hidden = true;
  find("page").hidden = false;
  restore();
  // A heading in the lab, which was hidden when the page opened.
  if (!location.hash.includes("=")) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function accuracyOf({ accuracy, accuracy_six: six }) {
  const percent = (fraction) => `${(100 * fraction).toFixed(2)} %`;
  const one = `${percent(accuracy)} of the CIFAR-10 test images correctly`;
  return `${one}, and ${percent(six)} with six views`;
}
