// Tells the browser which language is shown; the page is complete without this.
for (const choice of document.querySelectorAll("[name=language]")) {
  choice.addEventListener("change", () => { document.documentElement.lang = choice.id.slice(5); });
}
