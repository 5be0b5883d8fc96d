// Runs before the first paint, as a classic script: the theme and the open panels are there at once, so
// nothing flashes. theme.js and layout.js take over from here.
"use strict";
(() => {
  const root = document.documentElement;
  /** @param {string} key */
  const read = (key) => {
    try {
      return localStorage.getItem(`fastpath.${key}`);
    } catch {
      return null; // the browser forbids it
    }
  };
  const theme = read("theme");
  const dark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  if (dark) document.querySelector('meta[name="theme-color"]')?.setAttribute("content", "#161715");
  if (read("sidebar") !== "closed" && matchMedia("(min-width: 60rem)").matches) root.dataset.sidebar = "open";
  if (read("engine") === "open" && matchMedia("(min-width: 75rem)").matches) root.dataset.engine = "open";
})();
