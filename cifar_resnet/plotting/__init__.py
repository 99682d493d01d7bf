"""Shared parts of all figures.

- `palette`: colorblind-safe colors
- `pictures`: convert images (tensors, arrays, PIL images) to pixels that Matplotlib draws
- `style`: set the style of text, lines and images, whatever `rcParams` says
- `displayed`: the figure that displays itself in a notebook
- `canvas`: check the arguments of a figure, create it, and place text and axes in inches
- `grid`: draw images in rows and columns
- `saving`: write a figure to a file atomically
- `loggers`: pass figures to the loggers of Lightning
"""
