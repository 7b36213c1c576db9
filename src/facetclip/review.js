"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const content = JSON.parse(byId("content").textContent);
  const pictures = byId("pictures").textContent.split("\n");
  const identity = document.documentElement.dataset.identity;
  const KEY = `facetclip-review-${identity}`;
  const REASONS = { disagrees: "photo and table disagree", label: "worth labelling next" };
  const cells = content.cells.map(([item, attribute, listed, suggested, probability, before, reason]) => ({
    item, attribute, listed, suggested, probability, before, reason,
  }));

  // What was decided: place of the suggestion -> {verdict, value}. `done` is the order, for undo.
  let decided = {};
  let done = [];
  let shown = []; // places of the suggestions that pass the filters
  let at = 0; // place in `shown`
  let chosen = new Set(); // values marked for "other", where several may be

  const remember = () => {
    try {
      localStorage.setItem(KEY, JSON.stringify({ decided, done }));
    } catch (error) {
      byId("notice").textContent = "This browser keeps nothing for this page: export before you close it.";
    }
  };
  const recall = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) || "{}");
      decided = kept.decided || {};
      done = kept.done || [];
    } catch (error) {
      decided = {};
      done = [];
    }
  };

  const valuesOf = (cell) => content.attributes[cell.attribute].values;
  const separatorOf = (cell) => content.attributes[cell.attribute].separator;
  const percent = (number) => (number === null ? "" : `${Math.round(1000 * number) / 10} %`);
  const current = () => (shown.length ? shown[at] : null);

  const filter = () => {
    const attribute = byId("by-attribute").value;
    const reason = byId("by-reason").value;
    const state = byId("by-state").value;
    const kept = current();
    shown = [];
    cells.forEach((cell, place) => {
      if (attribute && cell.attribute !== attribute) return;
      if (reason && cell.reason !== reason) return;
      const verdict = decided[place] && decided[place].verdict;
      if (state === "open" ? verdict : state && verdict !== state) return;
      shown.push(place);
    });
    at = Math.max(0, shown.indexOf(kept));
    arrive();
  };

  const progress = () => {
    const count = Object.keys(decided).length;
    byId("bar").style.width = `${(100 * count) / cells.length}%`;
    byId("bar").parentElement.setAttribute("aria-valuenow", String(count));
    byId("count").textContent = `${count.toLocaleString("en")} of ${cells.length.toLocaleString("en")} decided`;
    byId("undo").disabled = !done.length;
    byId("export").disabled = !count;
  };

  const side = (name, value, probability, empty) => {
    const parts = (value || empty).split(/(?<=[|;,/])/);
    byId(name).replaceChildren(...parts.flatMap((part) => [part, document.createElement("wbr")])); // a line may end there
    byId(name).classList.toggle("silent", !value);
    byId(`${name}-probability`).textContent = percent(probability);
    byId(`${name}-bar`).style.width = `${100 * (probability || 0)}%`;
  };

  const buttons = (cell) => {
    const verdict = decided[current()];
    byId("values").replaceChildren(
      ...valuesOf(cell).map((value, place) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "value";
        const key = document.createElement("kbd");
        key.textContent = place < 9 ? String(place + 1) : "";
        button.append(key, value);
        const on = separatorOf(cell) ? chosen.has(value) : verdict && verdict.verdict === "other" && verdict.value === value;
        button.setAttribute("aria-pressed", String(Boolean(on)));
        button.addEventListener("click", () => choose(value));
        return button;
      }),
    );
    byId("save-set").hidden = !separatorOf(cell);
  };

  const show = () => {
    const place = current();
    byId("card").hidden = place === null;
    byId("nothing").hidden = place !== null;
    progress();
    if (place === null) {
      byId("position").textContent = "";
      return;
    }
    const cell = cells[place];
    const [item, product, title] = content.items[cell.item];
    const picture = byId("picture");
    const data = pictures[cell.item];
    picture.hidden = !data;
    picture.src = data ? `data:image/jpeg;base64,${data}` : "";
    picture.alt = title || item;
    byId("title").textContent = title || item;
    byId("ids").textContent = title ? `item ${item}, product ${product}` : `product ${product}`;
    byId("attribute").textContent = cell.attribute;
    byId("reason").textContent = REASONS[cell.reason];
    side("listed", cell.listed, cell.before, "nothing");
    side("suggested", cell.suggested, cell.probability, "nothing");
    byId("position").textContent = `${(at + 1).toLocaleString("en")} / ${shown.length.toLocaleString("en")}`;
    const verdict = decided[place];
    byId("card").dataset.verdict = verdict ? verdict.verdict : "";
    byId("verdict").textContent = verdict
      ? { accept: "accepted", reject: "rejected", unclear: "cannot tell", other: `set to ${verdict.value}` }[verdict.verdict]
      : "";
    for (const name of ["accept", "reject", "unclear"]) {
      byId(name).setAttribute("aria-pressed", String(Boolean(verdict && verdict.verdict === name)));
    }
    buttons(cell);
  };

  const arrive = () => {
    const cell = current() === null ? null : cells[current()];
    const separator = cell && separatorOf(cell);
    const verdict = decided[current()];
    const marked = verdict && verdict.verdict !== "unclear" ? verdict.value : cell && cell.suggested;
    chosen = new Set(separator && marked ? marked.split(separator) : []);
    show();
  };

  const move = (by) => {
    if (!shown.length) return;
    at = Math.min(shown.length - 1, Math.max(0, at + by));
    arrive();
  };

  const decide = (verdict, value) => {
    const place = current();
    if (place === null) return;
    done.push([place, decided[place] || null]);
    decided[place] = { verdict, value };
    remember();
    // The filtered list stays as it is until a filter is touched: nothing moves under the fingers.
    if (at < shown.length - 1) move(1);
    else arrive();
  };

  const accept = () => current() !== null && decide("accept", cells[current()].suggested);
  const reject = () => current() !== null && decide("reject", cells[current()].listed);
  const unclear = () => current() !== null && decide("unclear", cells[current()].listed);
  const choose = (value) => {
    const cell = cells[current()];
    if (!separatorOf(cell)) {
      decide(value === cell.suggested ? "accept" : "other", value);
      return;
    }
    if (!chosen.delete(value)) chosen.add(value);
    show();
  };
  const saveSet = () => {
    const cell = cells[current()];
    if (!separatorOf(cell) || !chosen.size) return;
    const value = valuesOf(cell).filter((each) => chosen.has(each)).join(separatorOf(cell));
    decide(value === cell.suggested ? "accept" : "other", value);
  };
  const undo = () => {
    if (!done.length) return;
    const [place, before] = done.pop();
    if (before) decided[place] = before;
    else delete decided[place];
    remember();
    const found = shown.indexOf(place);
    if (found >= 0) at = found;
    arrive();
  };

  // A cell as CSV; what a spreadsheet would take for a formula gets an apostrophe, which facetclip apply takes off again.
  const quoted = (cell) => {
    const inert = /^'*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]/.test(cell) ? `'${cell}` : cell;
    return /[",\r\n]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
  };
  const corrections = () => {
    const lines = [["item_id", "attribute", "listed", "suggested", "verdict", "value"]];
    cells.forEach((cell, place) => {
      const answer = decided[place];
      if (answer) {
        lines.push([content.items[cell.item][0], cell.attribute, cell.listed, cell.suggested, answer.verdict, answer.value]);
      }
    });
    return `${lines.map((line) => line.map(quoted).join(",")).join("\n")}\n`;
  };
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\uFEFF", corrections()], { type: "text/csv" }));
    link.download = "corrections.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const KEYS = {
    ArrowRight: () => move(1), ArrowLeft: () => move(-1), y: accept, n: reject, u: unclear, 0: unclear,
    z: undo, Backspace: undo, e: save, Enter: saveSet,
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" && ["Enter", "Escape"].includes(event.key)) event.target.blur();
    if (event.target.tagName === "SELECT" || event.metaKey || event.altKey) return;
    if (event.ctrlKey && event.key !== "z") return;
    if (event.key === "Enter" && event.target.tagName === "BUTTON") return;
    const number = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
    const place = current();
    if (number && place !== null && number <= valuesOf(cells[place]).length) choose(valuesOf(cells[place])[number - 1]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
  const click = { accept, reject, unclear, undo, export: save, "save-set": saveSet, next: () => move(1), previous: () => move(-1) };
  for (const [id, action] of Object.entries(click)) byId(id).addEventListener("click", action);

  const options = (id, names) => {
    for (const [value, text] of names) byId(id).add(new Option(text, value));
    // Once it is chosen keys decide again: after a click, and where keys choose after Enter.
    let clicked = false;
    byId(id).addEventListener("pointerdown", () => { clicked = true; });
    byId(id).addEventListener("keydown", () => { clicked = false; });
    byId(id).addEventListener("change", () => {
      filter();
      if (clicked) byId(id).blur();
    });
  };
  const counted = (key, words) => {
    const counts = new Map();
    for (const cell of cells) counts.set(cell[key], (counts.get(cell[key]) || 0) + 1);
    return [...counts].map(([value, count]) => [value, `${words[value] || value} (${count.toLocaleString("en")})`]);
  };
  options("by-attribute", counted("attribute", {}));
  options("by-reason", counted("reason", REASONS));
  options("by-state", [["open", "not decided"], ["accept", "accepted"], ["reject", "rejected"], ["other", "set otherwise"], ["unclear", "cannot tell"]]);

  recall();
  filter();
  const first = shown.findIndex((place) => !decided[place]);
  at = first < 0 ? 0 : first;
  arrive();
  window.facetclipReview = { corrections }; // for tests, and for whoever cannot download
})();
