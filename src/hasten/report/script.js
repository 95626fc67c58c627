// Values under the pointer. The page is complete without this.
for (const panel of document.querySelectorAll(".panel")) {
  const area = panel.querySelector(".area");
  const cursor = panel.querySelector(".cursor");
  const readout = panel.querySelector(".readout");
  const { curves, axis } = JSON.parse(panel.querySelector("script").textContent);
  const read = (number) => number.toLocaleString("en", { maximumSignificantDigits: 4 });

  const nearest = (curve, place) => {
    let best = 0;
    curve.x.forEach((x, i) => { if (Math.abs(x - place) < Math.abs(curve.x[best] - place)) best = i; });
    return best;
  };
  const line = (text, series) => {
    const row = document.createElement("div");
    row.textContent = text;
    if (series !== undefined) row.className = `s${series % 6}`;
    return row;
  };
  const place = (value) => (axis === "seconds" ? `${read(value)} s` : Math.round(value).toLocaleString("en"));

  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width;
    const found = curves.map((curve) => [curve, nearest(curve, at)]);
    if (!found.length) return;
    const [closest, index] = found.reduce((a, b) => (Math.abs(b[0].x[b[1]] - at) < Math.abs(a[0].x[a[1]] - at) ? b : a));
    cursor.style.left = `${100 * closest.x[index]}%`;
    readout.replaceChildren(
      line(place(closest.at[index])),
      ...found.map(([curve, i]) => line(`${curve.label}  ${read(curve.y[i])}`, curve.series)),
    );
    const right = closest.x[index] > 0.5;
    readout.style.left = right ? "auto" : `calc(${100 * closest.x[index]}% + 0.6rem)`;
    readout.style.right = right ? `calc(${100 * (1 - closest.x[index])}% + 0.6rem)` : "auto";
    cursor.hidden = readout.hidden = false;
  });
  area.addEventListener("pointerleave", () => { cursor.hidden = readout.hidden = true; });
}
