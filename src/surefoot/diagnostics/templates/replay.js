"use strict";
(() => {
  const holder = document.getElementById("replay-data");
  if (!holder) return;
  const { answers, figures } = JSON.parse(holder.textContent);
  const byId = (id) => document.getElementById(id);
  const [list, tokens, readout, table] = ["replay-list", "replay-tokens", "replay-readout", "replay-table"].map(byId);
  const [stepBox, orderBox, figureBox] = ["replay-step", "replay-order", "replay-figure"].map(byId);
  let shown = [];
  let open = null;
  let at = 0;

  // Everything that comes from a run enters the page by textContent.
  function make(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const write = (x) => {
    if (x === null || x === undefined) return "–";
    const text = Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
    return text.replace("-", "−");
  };
  const percent = (x) => `${Math.round(100 * x)} %`;

  const gap = (answer) => (answer.found === undefined ? -2 : answer.paid - answer.found);
  const orders = {
    suspicious: (a, b) => gap(b) - gap(a),
    best: (a, b) => b.score - a.score,
    worst: (a, b) => a.score - b.score,
    far: (a, b) => b.kl - a.kl,
    time: (a, b) => a.step - b.step,
  };

  function arrange() {
    const step = stepBox.value;
    shown = answers.filter((answer) => step === "" || String(answer.step) === step);
    shown.sort(orders[orderBox.value]); // the sort is stable: equals stay in the order of the steps
    list.replaceChildren(...shown.map((answer) => {
      const item = make("li");
      const button = make("button", "answer");
      button.type = "button";
      const facts = make("span", "facts-line");
      const judged = Object.entries(answer.judges).map(([name, x]) => ` · ${name} ${write(x)}`).join("");
      facts.append(make("span", "", `step ${answer.step} · reward ${write(answer.score)}${judged}`));
      if (answer.paid - answer.found > 0.5) facts.append(make("span", "tag worst", "overpaid"));
      const said = make("span", "said");
      said.dir = "auto";
      said.append(make("b", "", answer.prompt.slice(-80)), ` ${answer.tokens.join("").slice(0, 120)}`);
      button.append(facts, said);
      button.addEventListener("click", () => show(answer));
      item.append(button);
      return item;
    }));
    byId("replay-count").textContent = `${shown.length} of ${answers.length} answers`;
    list.scrollTop = 0;
    show(shown[0]);
  }

  // Colour: the sign by hue, the size by strength. The scale is that of all recorded answers, so that steps can be compared.
  const position = { "around 0": (x) => x, "around 1": (x) => Math.log(Math.max(x, 1e-9)), "from 0 down": (x) => x };
  const sizes = new Map(figures.map((figure) => {
    const all = answers.flatMap((answer) => answer.figures[figure.key]).filter((x) => x !== null)
      .map((x) => Math.abs(position[figure.scale](x))).sort((a, b) => a - b);
    return [figure.key, all[Math.floor(0.98 * (all.length - 1))] || 1];
  }));
  function wash(figure, x) {
    if (x === null) return "transparent";
    const share = position[figure.scale](x) / sizes.get(figure.key);
    const strength = Math.round(72 * Math.min(1, Math.abs(share)));
    return `color-mix(in srgb, var(${share < 0 ? "--two" : "--one"}) ${strength}%, transparent)`;
  }
  const figureNow = () => figures.find((figure) => figure.key === figureBox.value);

  function paint() {
    const figure = figureNow();
    [...tokens.children].forEach((node, i) => { node.style.backgroundColor = wash(figure, open.figures[figure.key][i]); });
    const size = sizes.get(figure.key);
    const ends = { "around 0": [-size, 0, size], "around 1": [Math.exp(-size), 1, Math.exp(size)], "from 0 down": [-size, -size / 2, 0] }[figure.scale];
    byId("replay-what").textContent = figure.what;
    byId("replay-scale").replaceChildren(...ends.map((x, i) => {
      const cell = make("span", "", i === 1 || !figure.unit ? write(x) : `${write(x)} ${figure.unit}`);
      cell.style.backgroundColor = wash(figure, x);
      return cell;
    }));
  }

  function read(i) {
    at = i;
    [...tokens.children].forEach((node, k) => { node.tabIndex = k === i ? 0 : -1; node.classList.toggle("read", k === i); });
    const parts = [make("div", "which", `token ${i + 1} of ${open.tokens.length}: `)];
    parts[0].append(make("code", "", JSON.stringify(open.tokens[i]).slice(1, -1)));
    for (const figure of figures) {
      const cell = make("div");
      cell.append(make("dt", "", figure.title), make("dd", "", write(open.figures[figure.key][i])));
      parts.push(cell);
    }
    const cell = make("div");
    cell.append(make("dt", "", "Clipped"), make("dd", "", open.clipped[i] ? "yes" : "no"));
    readout.replaceChildren(...parts, cell);
  }

  function show(answer) {
    open = answer;
    byId("replay-open").hidden = !answer;
    if (!answer) return;
    const index = shown.indexOf(answer);
    [...list.children].forEach((item, i) => item.firstChild.setAttribute("aria-pressed", String(i === index)));
    byId("replay-prompt").textContent = answer.prompt;
    const facts = [`Step ${answer.step}`, `reward ${write(answer.score)}`, `KL ${write(answer.kl)} nats`];
    for (const [name, x] of Object.entries(answer.judges)) facts.push(`${name} ${write(x)}`);
    if (answer.found !== undefined) facts.push(`better paid than ${percent(answer.paid)}, judged better than ${percent(answer.found)} of all recorded`);
    if (answer.is_cut) facts.push("cut by length");
    if (answer.left_out > 0) facts.push(`${answer.left_out} further tokens are not recorded`);
    byId("replay-facts").textContent = facts.join(" · ");
    tokens.replaceChildren(...answer.tokens.map((text, i) => {
      const node = make("span", answer.clipped[i] ? "token clipped" : "token", text.replaceAll("\n", "⏎\n") || "·");
      node.setAttribute("role", "button");
      node.addEventListener("mouseenter", () => read(i));
      node.addEventListener("focus", () => { if (at !== i) read(i); });
      node.addEventListener("click", () => read(i));
      return node;
    }));
    paint();
    if (answer.tokens.length) read(0); else readout.replaceChildren();
    table.open = false;
    table.querySelector("tbody").replaceChildren();
  }

  tokens.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const target = move && tokens.children[at + move];
    if (!target) return;
    event.preventDefault();
    read(at + move);
    target.focus();
  });
  table.addEventListener("toggle", () => {
    const body = table.querySelector("tbody");
    if (!table.open || body.children.length) return;
    body.replaceChildren(...open.tokens.map((text, i) => {
      const row = make("tr");
      const head = make("th", "", JSON.stringify(text).slice(1, -1));
      head.scope = "row";
      row.append(head, ...figures.map((figure) => make("td", "", write(open.figures[figure.key][i]))), make("td", "", open.clipped[i] ? "yes" : "no"));
      return row;
    }));
  });
  for (const step of [...new Set(answers.map((answer) => answer.step))]) stepBox.add(new Option(String(step), String(step)));
  for (const figure of figures) figureBox.add(new Option(figure.title, figure.key));
  for (const box of [stepBox, orderBox]) box.addEventListener("change", arrange);
  figureBox.addEventListener("change", paint);
  byId("replay-tool").hidden = false;
  arrange();
})();
