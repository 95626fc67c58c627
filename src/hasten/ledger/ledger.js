// The page is complete without this: it tells the browser which language is shown.
for (const choice of document.querySelectorAll("[name=language]")) {
  choice.addEventListener("change", () => { document.documentElement.lang = choice.id.slice(5); });
}
