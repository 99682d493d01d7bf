// Example images, drawn by this file: simple scenes of colored shapes at 32 x 32 pixels.

import { SIDE } from "./network.js";

const SAMPLES = 4; // per pixel and axis

const polygon = (color, ...corners) => ({ color, corners });
const box = (color, left, top, right, bottom) =>
  polygon(color, [left, top], [right, top], [right, bottom], [left, bottom]);
const ellipse = (color, x, y, width, height = width, angle = 0) => ({
  color, center: [x, y], radii: [width, height], angle: (angle * Math.PI) / 180,
});

// Colors at the top, in between and at the bottom of the background, and the shapes from back to front.
const SCENES = {
  ship: {
    background: [[0, "#8fb6dc"], [0.6, "#c4d8e8"], [0.62, "#35618f"], [1, "#1d3f66"]],
    shapes: [
      polygon("#7a1f1f", [2, 20], [30, 19], [26, 25], [6, 25]),
      polygon("#22262e", [2, 18], [30, 17], [29, 21], [3, 21]),
      box("#f2f2ee", 9, 12, 22, 18),
      box("#e4e4df", 12, 9, 19, 12),
      box("#c8442f", 14, 5, 17, 9),
      box("#20242a", 14, 5, 17, 6.2),
      ...[10.5, 13.5, 16.5, 19.5].map((x) => box("#41566e", x, 14, x + 1.3, 15.5)),
    ],
  },
  airplane: {
    background: [[0, "#5f9ad6"], [1, "#b9d7ef"]],
    shapes: [
      ellipse("#dfeaf3", 26, 26, 6, 2),
      polygon("#aab4bf", [15, 14], [20, 14], [13, 6], [11, 6]),
      ellipse("#eef1f4", 16, 16, 13, 2.3, -6),
      polygon("#3a4f7a", [3, 17.5], [7, 16.5], [4, 10], [2, 10.5]),
      polygon("#8d98a5", [13, 17], [20, 16], [12, 26], [9.5, 26]),
      ellipse("#2c3646", 26, 14.6, 1.4, 0.7, -6),
    ],
  },
  automobile: {
    background: [[0, "#a9c4dd"], [0.5, "#d4dfe6"], [0.55, "#7f8a7a"], [0.68, "#6d6f70"], [1, "#8b8c8d"]],
    shapes: [
      ellipse("#4b4d50", 16, 26, 13, 1.6),
      polygon("#b3161b", [8, 16], [11, 10.5], [21, 10.5], [25, 16]),
      polygon("#b9d3e2", [10, 15.5], [12, 11.8], [15.5, 11.8], [15.5, 15.5]),
      polygon("#a8c6d8", [16.6, 15.5], [16.6, 11.8], [20.5, 11.8], [23, 15.5]),
      polygon("#c81d22", [2, 17], [8, 15.5], [25, 15.5], [30, 18], [30, 23], [2, 23]),
      box("#8f1115", 2, 21.5, 30, 23),
      box("#f6e7b0", 28.5, 18, 30, 19.6),
      ...[8.5, 23.5].flatMap((x) => [ellipse("#17181a", x, 23, 3.4), ellipse("#b9bcc0", x, 23, 1.6)]),
    ],
  },
  truck: {
    background: [[0, "#9fc0de"], [0.55, "#cddbe4"], [0.6, "#8a937f"], [0.72, "#77787a"], [1, "#909193"]],
    shapes: [
      ellipse("#525457", 16, 27.5, 14, 1.5),
      box("#e9e6dc", 1.5, 6, 20, 21),
      box("#c9c5b8", 1.5, 19, 20, 21),
      polygon("#1f5fa8", [21, 9.5], [26, 9.5], [29.5, 15], [30, 22], [21, 22]),
      polygon("#a9cbe0", [22.4, 11], [25.4, 11], [27.6, 15], [22.4, 15]),
      box("#2a2d31", 1.5, 21.5, 30.5, 23.5),
      ...[6, 11.5, 25].flatMap((x) => [ellipse("#141517", x, 24.5, 2.9), ellipse("#9b9ea2", x, 24.5, 1.2)]),
    ],
  },
  horse: {
    background: [[0, "#9db7cd"], [0.3, "#7d9a6a"], [0.5, "#6f9a49"], [1, "#587f38"]],
    shapes: [
      ...[8.5, 11, 19, 21.5].map((x, k) => box(k % 2 ? "#5c351b" : "#4a2a15", x, 17, x + 2, 28)),
      ellipse("#6b3f20", 15, 16, 8, 4.4),
      polygon("#2a1a10", [6, 13], [8, 14.5], [5.5, 23], [3.8, 22]),
      polygon("#6b3f20", [19, 17], [22.5, 6], [26.5, 7], [23.5, 17]),
      polygon("#6b3f20", [22.5, 4], [25, 3.4], [30.5, 9.6], [28.6, 11.4], [23, 9]),
      polygon("#2a1a10", [21.5, 4.5], [23.4, 4.8], [20.5, 14], [18.5, 13]),
      polygon("#4a2a15", [23.5, 4], [24.4, 1.4], [25.4, 4]),
      ellipse("#120b07", 26, 6.5, 0.6),
    ],
  },
  frog: {
    background: [[0, "#5d4a2f"], [0.5, "#77603d"], [1, "#8a7049"]],
    shapes: [
      ellipse("#4c3b25", 16, 26, 13, 3),
      ellipse("#4f7d22", 7, 21, 4.6, 5.6, 20),
      ellipse("#4f7d22", 25, 21, 4.6, 5.6, -20),
      ellipse("#6ea030", 16, 18, 9, 8),
      ellipse("#c9d38b", 16, 22, 6, 4.5),
      ellipse("#77ab35", 16, 12.5, 8, 5),
      ...[11, 21].flatMap((x) => [ellipse("#77ab35", x, 8.4, 2.8), ellipse("#e0c24a", x, 8, 1.7), ellipse("#15140e", x, 8, 1)]),
      polygon("#33501a", [9.5, 14.2], [16, 15.8], [22.5, 14.2], [16, 16.8]),
      ...[10, 22].map((x) => ellipse("#5f8f29", x, 26, 3.4, 1.6)),
    ],
  },
};

export const SCENE_NAMES = Object.keys(SCENES);

/** Draw a scene: Uint8 values (32, 32, 3). */
export function drawScene(name) {
  const { background, shapes } = SCENES[name];
  const stops = background.map(([place, color]) => [place, rgb(color)]);
  const parts = shapes.map((shape) => ({ ...shape, color: rgb(shape.color) }));
  const pixels = new Uint8ClampedArray(SIDE * SIDE * 3);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const sum = [0, 0, 0];
      for (let sample = 0; sample < SAMPLES * SAMPLES; sample++) {
        const across = x + ((sample % SAMPLES) + 0.5) / SAMPLES;
        const down = y + (Math.floor(sample / SAMPLES) + 0.5) / SAMPLES;
        const shape = parts.findLast((part) => contains(part, across, down));
        const color = shape ? shape.color : colorAt(stops, down / SIDE);
        for (let k = 0; k < 3; k++) sum[k] += color[k];
      }
      for (let k = 0; k < 3; k++) pixels[(y * SIDE + x) * 3 + k] = sum[k] / SAMPLES ** 2;
    }
  }
  return pixels;
}

function contains({ corners, center, radii, angle }, x, y) {
  if (center) {
    const [right, down] = [x - center[0], y - center[1]];
    const along = right * Math.cos(angle) + down * Math.sin(angle);
    const across = down * Math.cos(angle) - right * Math.sin(angle);
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1;
  }
  let inside = false;
  corners.forEach(([x1, y1], k) => {
    const [x2, y2] = corners[(k + 1) % corners.length];
    if (y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1)) inside = !inside;
  });
  return inside;
}

function colorAt(stops, place) {
  const next = Math.max(1, stops.findIndex(([stop]) => stop >= place));
  const [[start, first], [end, last]] = [stops[next - 1], stops[next]];
  return first.map((value, k) => value + ((last[k] - value) * (place - start)) / (end - start));
}

function rgb(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}
