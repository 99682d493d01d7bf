// What the theme lacks: a name for its search dialog, and tables that are too wide for the window
// scroll by keyboard.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
  }),
);
