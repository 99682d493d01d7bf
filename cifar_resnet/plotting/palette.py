"""Colorblind-safe colors for lines, bars and boxes: the palette of Okabe and Ito."""

from __future__ import annotations

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GRAY = "#999999"

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)  # for any number of lines
