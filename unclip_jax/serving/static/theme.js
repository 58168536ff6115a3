// Light or dark: as the system has it, until the button of the page says otherwise.

export function theme() {
  const root = document.documentElement;
  const saved = localStorage.getItem("unclip-theme");
  if (saved) root.dataset.theme = saved;
  document.getElementById("theme").onclick = () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("unclip-theme", root.dataset.theme);
  };
}
