// Draws the heads and follows pointer and keys. A byte is 255 times the square root of a probability.
const STEPS = 255, SMALL = 64, LABELLED = 32, TOP = 6;
const ARROWS = { from: "→", to: "←" };
const all = (root, selector) => [...root.querySelectorAll(selector)];
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function colour() {
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--s0").trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// Paint `rows` x `columns` shades of 0 to 255 as opacity of the one colour.
function paint(canvas, shades, rows, columns) {
  const [red, green, blue] = colour();
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set([red, green, blue, shades[i]], 4 * i);
  context.putImageData(image, 0, 0);
}

// Make a picture smaller by keeping the largest of the shades that fall together: thin lines stay.
function shrink(shades, rows, columns) {
  const height = Math.min(rows, SMALL), width = Math.min(columns, SMALL);
  const small = new Uint8Array(height * width);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = Math.floor((row * height) / rows) * width + Math.floor((column * width) / columns);
      small[at] = Math.max(small[at], shades[row * columns + column]);
    }
  }
  return [small, height, width];
}

// The arrow keys move among buttons; one of them is reached by Tab.
function rove(buttons, step) {
  buttons.forEach((button, at) => {
    button.addEventListener("keydown", (event) => {
      const to = at + ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -step, ArrowDown: step }[event.key] ?? 0);
      if (event.key === "Home" || event.key === "End") buttons.at(event.key === "Home" ? 0 : -1).focus();
      else if (to !== at && buttons[to]) buttons[to].focus();
      else return;
      event.preventDefault();
    });
    button.addEventListener("focus", () => buttons.forEach((other) => { other.tabIndex = other === button ? 0 : -1; }));
  });
  if (buttons.length) buttons[0].tabIndex = 0;
}

// Scroll a long text, not the page, to a token.
function reveal(token) {
  const strip = token.parentElement, above = token.offsetTop, below = above + token.offsetHeight;
  if (above < strip.scrollTop) strip.scrollTop = above;
  else if (below > strip.scrollTop + strip.clientHeight) strip.scrollTop = below - strip.clientHeight;
}

class View {
  constructor(root, data, bytes) {
    Object.assign(this, data, { root, bytes });
    this.size = this.queries * this.keys;
    this.strips = Object.fromEntries(all(root, ".strip").map((strip) => [strip.dataset.side, all(strip, ".token")]));
    this.self = "both" in this.strips;
    this.queryTokens = this.strips.both ?? this.strips.queries;
    this.keyTokens = this.strips.both ?? this.strips.keys;
    this.line = root.querySelector(".readout-line");
    this.plane = root.querySelector(".plane");
    this.pinned = { side: "queries", at: this.causal || !this.self ? this.queries - 1 : this.queries >> 1 };
    this.shades = new Uint8Array(this.size);
    this.follow();
    this.label();
    this.drawSmall();
    this.choose(String(this.start));
  }

  text(tokens, at) { return tokens[at].textContent; }

  // The heads that a choice stands for.
  headsOf(choice) {
    const range = (from, count) => Array.from({ length: count }, (_, i) => from + i);
    if (choice === "all") return range(0, this.layers * this.heads);
    if (choice.startsWith("layer-")) return range(Number(choice.slice(6)) * this.heads, this.heads);
    return [Number(choice)];
  }

  choose(choice) {
    const heads = this.headsOf(choice);
    this.weights = new Float32Array(this.size);
    for (const head of heads) {
      for (let i = 0; i < this.size; i++) {
        const root = this.bytes[head * this.size + i] / STEPS;
        this.weights[i] += (root * root) / heads.length;
      }
    }
    this.shades = Uint8Array.from(this.weights, (weight) => Math.round(STEPS * Math.sqrt(weight)));
    for (const button of all(this.root, "[data-head]")) button.setAttribute("aria-pressed", button.dataset.head === choice);
    for (const row of all(this.root, "tr[data-go]")) row.classList.toggle("chosen", row.dataset.go === choice);
    const button = this.root.querySelector(`[data-head="${choice}"]`);
    const name = button.dataset.name ?? button.textContent;
    this.root.querySelector(".head-name").textContent = choice === "all" || button.dataset.name ? name : `${name}.*`;
    const row = this.root.querySelector(`tr[data-go="${choice}"]`);
    const titles = all(this.root, ".sort");
    this.root.querySelector(".head-figures").replaceChildren(
      ...(row ? all(row, "td") : []).map((cell, i) => {
        const part = document.createElement("span");
        part.append(...[...titles[i + 1].childNodes].map((node) => node.cloneNode(true)), ` ${cell.textContent}`);
        return part;
      }),
    );
    this.draw();
    this.show(this.pinned);
  }

  drawSmall() {
    for (const button of all(this.root, ".small")) {
      const from = Number(button.dataset.head) * this.size;
      button.firstElementChild.className = this.queries > LABELLED ? "" : "coarse";
      paint(button.firstElementChild, ...shrink(this.bytes.subarray(from, from + this.size), this.queries, this.keys));
    }
  }

  draw() { paint(this.plane.querySelector("canvas"), this.shades, this.queries, this.keys); }

  // Tokens beside the large picture, where there is room for them.
  label() {
    this.plane.style.aspectRatio = Math.min(Math.max(this.keys / this.queries, 0.8), 3);
    if (Math.max(this.queries, this.keys) > LABELLED) return;
    const spans = (tokens) => tokens.map((token) => {
      const span = document.createElement("span"), text = document.createElement("bdi");
      text.textContent = token.textContent;
      span.append(text);
      return span;
    });
    this.root.querySelector(".left-labels").append(...spans(this.queryTokens));
    this.root.querySelector(".top-labels").append(...spans(this.keyTokens));
  }

  // What a token looks at, or is looked at by: [tokens on the other side, a weight for each].
  look({ side, at }) {
    const backward = this.self ? document.getElementById("direction-to").checked : side === "keys";
    const weights = backward
      ? Array.from({ length: this.queries }, (_, query) => this.weights[query * this.keys + at])
      : [...this.weights.subarray(at * this.keys, (at + 1) * this.keys)];
    return [backward, weights];
  }

  // Shade the other tokens for one token, and say the strongest.
  show(place) {
    const [backward, weights] = this.look(place);
    const own = place.side === "keys" ? this.keyTokens : this.queryTokens;
    const others = backward ? this.queryTokens : this.keyTokens;
    for (const token of new Set([...this.queryTokens, ...this.keyTokens])) {
      token.classList.remove("chosen", "strong");
      token.style.removeProperty("--weight");
    }
    others.forEach((token, at) => {
      const shade = Math.sqrt(weights[at]);
      token.style.setProperty("--weight", shade.toFixed(3));
      token.classList.toggle("strong", shade > 0.62);
    });
    own[place.at].classList.add("chosen");
    if (place === this.pinned) reveal(own[place.at]);
    const strongest = weights.map((weight, at) => [weight, at]).sort((a, b) => b[0] - a[0]).slice(0, TOP);
    this.say(own, place.at, backward, strongest.filter(([weight]) => weight >= 0.0005).map(([weight, at]) => [others, at, weight]));
    this.mark(backward ? null : place.at, backward ? place.at : null);
  }

  say(own, at, backward, links) {
    const name = document.createElement("bdi"), arrow = document.createElement("i");
    name.textContent = this.text(own, at);
    name.className = "who";
    arrow.textContent = `\u00a0${at}\u00a0${backward ? ARROWS.to : ARROWS.from}`;
    const parts = links.map(([tokens, other, weight]) => {
      const part = document.createElement("span"), text = document.createElement("bdi"), share = document.createElement("i");
      text.textContent = this.text(tokens, other);
      share.textContent = ` ${percent(weight)}`;
      part.append(text, share);
      return part;
    });
    this.line.replaceChildren(name, arrow, ...parts.flatMap((part) => [" ", part]));
  }

  // Lines over the large picture.
  mark(query, key) {
    const row = this.plane.querySelector(".cross-row"), column = this.plane.querySelector(".cross-column");
    row.hidden = query === null;
    column.hidden = key === null;
    if (query !== null) Object.assign(row.style, { top: `${(100 * query) / this.queries}%`, height: `${100 / this.queries}%` });
    if (key !== null) Object.assign(column.style, { left: `${(100 * key) / this.keys}%`, width: `${100 / this.keys}%` });
    all(this.root, ".left-labels span").forEach((span, at) => span.classList.toggle("chosen", at === query));
    all(this.root, ".top-labels span").forEach((span, at) => span.classList.toggle("chosen", at === key));
  }

  follow() {
    for (const [side, tokens] of Object.entries(this.strips)) {
      const place = (at) => ({ side: side === "keys" ? "keys" : "queries", at });
      tokens.forEach((token, at) => {
        const pin = () => { this.pinned = place(at); this.show(this.pinned); };
        token.addEventListener("click", pin);
        token.addEventListener("focus", pin);
        token.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") this.show(place(at)); });
        token.addEventListener("pointerleave", () => this.show(this.pinned));
      });
      rove(tokens, 8);
    }
    const grid = all(this.root, ".grid-of-heads [data-head]");
    grid.slice(1).forEach((button) => button.addEventListener("focus", () => this.choose(button.dataset.head)));
    grid.forEach((button) => button.addEventListener("click", () => this.choose(button.dataset.head)));
    rove(grid, this.heads + 1);
    for (const target of all(this.root, "[data-go]")) target.addEventListener("click", () => this.choose(target.dataset.go));
    this.plane.addEventListener("pointermove", (event) => this.point(event));
    this.plane.addEventListener("pointerleave", () => this.show(this.pinned));
    this.plane.addEventListener("click", (event) => { this.pinned = { side: "queries", at: this.cell(event)[0] }; });
    this.sortable();
  }

  cell(event) {
    const box = this.plane.getBoundingClientRect();
    const at = (place, size, count) => Math.max(0, Math.min(count - 1, Math.floor((place / size) * count)));
    return [at(event.clientY - box.top, box.height, this.queries), at(event.clientX - box.left, box.width, this.keys)];
  }

  point(event) {
    const [query, key] = this.cell(event);
    this.say(this.queryTokens, query, false, [[this.keyTokens, key, this.weights[query * this.keys + key]]]);
    this.mark(query, key);
  }

  sortable() {
    for (const table of all(this.root, ".sortable")) {
      all(table, ".sort").forEach((button, column) => button.addEventListener("click", () => {
        const up = button.dataset.order === "down" || (column === 0 && button.dataset.order !== "up");
        all(table, ".sort").forEach((other) => delete other.dataset.order);
        button.dataset.order = up ? "up" : "down";
        const value = (row) => Number(row.children[column].dataset.value);
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => (up ? value(a) - value(b) : value(b) - value(a))));
      }));
    }
  }
}

async function start() {
  const data = JSON.parse(document.getElementById("heads").textContent);
  const bytes = await Promise.all(data.map((view) => unpack(view.bytes)));
  const views = all(document, ".view").map((root, i) => new View(root, data[i], bytes[i]));
  document.querySelector(".no-picture").hidden = true;
  for (const choice of all(document, "[name=direction]")) {
    choice.addEventListener("change", () => views.forEach((view) => view.show(view.pinned)));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach((view) => { view.drawSmall(); view.draw(); }));
}
start();
