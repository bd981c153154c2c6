"use strict";
// Filters and sorts what the page already shows; without it everything is visible in the order of the spec.
(() => {
  const form = document.getElementById("filters");
  const page = document.getElementById("main");
  const GRAVITY = { not_satisfied: 0, not_measured: 1, inconclusive: 2, satisfied: 3 };
  const SEVERITY = { critical: 0, major: 1, minor: 2 };
  const text = (node) => node.textContent.toLowerCase().replace(/\s+/g, " ");

  if (form) {
    const status = document.getElementById("filter-status");
    const rows = [...document.querySelectorAll("#results tr[data-finding]")];
    const groups = [...document.querySelectorAll("#results .matrix tbody")];
    const views = [...document.querySelectorAll("article.finding")];
    const facets = [...form.querySelectorAll("select:not([name=sort])")];
    const boxes = [...form.querySelectorAll("input[type=checkbox]")];
    const { sort, q } = form.elements;
    const place = new Map();
    [...groups, ...views].forEach((node, index) => place.set(node, index));
    const words = new Map();
    for (const group of groups) {
      const head = text(group.querySelector("tr.head"));
      for (const row of group.querySelectorAll("tr[data-finding]")) words.set(row, head + " " + text(row));
    }
    for (const view of views) words.set(view, text(view));

    // A header of a table becomes a button; the list "Order" says the same for every table at once.
    const heads = [];
    for (const head of document.querySelectorAll("#results th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorter";
      if (head.dataset.label) {
        button.textContent = head.dataset.label;
        head.prepend(button);
      } else {
        button.textContent = head.textContent;
        head.replaceChildren(button);
      }
      button.addEventListener("click", () => {
        const key = head.dataset.sort;
        sort.value = sort.value === key ? "-" + key : key;
        if (!sort.value) sort.value = key;
        changed();
      });
      heads.push(head);
    }

    const matches = (data, chosen) =>
      chosen.states.has(data.state) &&
      chosen.facets.every(([name, value]) =>
        name === "concepts" ? data.concepts.split(" ").includes(value) : data[name] === value,
      );

    const key = (row, by) => {
      if (by === "state") return GRAVITY[row.dataset.state];
      if (by === "severity") return SEVERITY[row.dataset.severity];
      if (by === "class") return row.dataset.class;
      if (by === "where") return text(row.querySelector(".label"));
      return row.dataset[by] === "" ? null : Number(row.dataset[by]);
    };
    // What was not measured has no place among numbers and stands last in either direction.
    const compare = (a, b, sign) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return sign * order;
    };
    const extreme = (node, by, sign) =>
      [...node.querySelectorAll("tr[data-finding]")].map((row) => key(row, by)).sort((a, b) => compare(a, b, sign))[0] ?? null;

    const order = (nodes, by, sign) => {
      const keys = new Map(nodes.map((node) => [node, by ? extreme(node, by, sign) : 0]));
      return [...nodes].sort((a, b) => compare(keys.get(a), keys.get(b), sign) || place.get(a) - place.get(b));
    };
    const arrange = () => {
      const by = sort.value.replace("-", "");
      const sign = sort.value.startsWith("-") ? -1 : 1;
      for (const parent of new Set([...groups, ...views].map((node) => node.parentNode))) {
        const nodes = [...groups, ...views].filter((node) => node.parentNode === parent);
        const sorted = order(nodes, by, sign);
        const now = [...parent.children].filter((node) => place.has(node));
        if (sorted.some((node, index) => node !== now[index])) parent.append(...sorted);
      }
      for (const group of groups) {
        const inner = [...group.querySelectorAll("tr[data-finding]")];
        const sorted = by
          ? [...inner].sort((a, b) => compare(key(a, by), key(b, by), sign) || rows.indexOf(a) - rows.indexOf(b))
          : rows.filter((row) => inner.includes(row));
        if (sorted.some((row, index) => row !== inner[index])) group.append(...sorted);
      }
      for (const head of heads) {
        if (head.dataset.sort === by) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      }
    };

    const notes = new Map();
    for (const name of ["attention", "passed"]) {
      const section = document.getElementById(name);
      if (!section || !section.querySelector("article.finding")) continue;
      const note = document.createElement("p");
      note.className = "filtered";
      note.hidden = true;
      section.querySelector("h2").after(note);
      notes.set(section, note);
    }

    const number = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    const apply = () => {
      const chosen = {
        states: new Set(boxes.filter((box) => box.checked).map((box) => box.value)),
        facets: facets.filter((select) => select.value).map((select) => [select.name, select.value]),
        text: q.value.trim().toLowerCase().replace(/\s+/g, " "),
      };
      for (const row of rows) row.hidden = !(matches(row.dataset, chosen) && words.get(row).includes(chosen.text));
      for (const group of groups) group.hidden = !group.querySelector("tr[data-finding]:not([hidden])");
      for (const table of document.querySelectorAll("#results .matrix"))
        table.hidden = !table.querySelector("tbody:not([hidden])");
      for (const view of views) {
        const results = [...view.querySelectorAll("tr[data-finding]")];
        view.hidden = !(results.some((row) => matches(row.dataset, chosen)) && words.get(view).includes(chosen.text));
        const layer = chosen.facets.find(([name]) => name === "layer");
        for (const part of view.querySelectorAll(".evidence[data-layer]"))
          part.hidden = Boolean(layer) && part.dataset.layer !== layer[1];
      }
      const shown = rows.filter((row) => !row.hidden).length;
      const narrowed = shown < rows.length || views.some((view) => view.hidden);
      for (const [section, note] of notes) {
        const all = [...section.querySelectorAll("article.finding")];
        const left = all.filter((view) => !view.hidden).length;
        note.hidden = left === all.length;
        note.textContent = `${left} of ${number(all.length, "check")} shown: a filter is set under “Results”.`;
      }
      page.toggleAttribute("data-narrowed", narrowed);
      const said = narrowed ? `${shown} of ${number(rows.length, "result")} shown.` : `All ${number(rows.length, "result")} shown.`;
      if (status.textContent !== said) status.textContent = said;
      form.querySelector("button[type=reset]").disabled = !narrowed && !sort.value;
    };

    // The address holds what is chosen, so that a view can be sent on: #anchor?state=inconclusive&q=ruler
    const query = () => {
      const chosen = new URLSearchParams();
      const on = boxes.filter((box) => box.checked).map((box) => box.value);
      if (on.length < boxes.length) chosen.set("state", on.join(" "));
      for (const select of [...facets, sort]) if (select.value) chosen.set(select.name, select.value);
      if (q.value.trim()) chosen.set("q", q.value.trim());
      return chosen.toString();
    };
    const split = () => {
      const whole = location.hash.slice(1);
      const at = whole.indexOf("?");
      return at < 0 ? [whole, null] : [whole.slice(0, at), new URLSearchParams(whole.slice(at + 1))];
    };
    const keep = (anchor) => {
      const chosen = query();
      const target = (chosen || anchor ? "#" : "") + anchor + (chosen ? "?" + chosen : "");
      if (target !== location.hash) history.replaceState(null, "", target || location.pathname + location.search);
    };
    const changed = () => {
      arrange();
      apply();
      keep(split()[0] || "results");
    };
    const choose = (params) => {
      const states = (params.get("state") ?? boxes.map((box) => box.value).join(" ")).split(" ");
      for (const box of boxes) box.checked = states.includes(box.value);
      for (const select of [...facets, sort]) {
        const value = params.get(select.name) ?? "";
        select.value = [...select.options].some((option) => option.value === value) ? value : "";
      }
      q.value = params.get("q") ?? "";
    };
    const arrive = () => {
      const [anchor, params] = split();
      if (params) choose(params);
      arrange();
      apply();
      const target = document.getElementById(anchor);
      if (target && target.closest("[hidden]")) {
        // Whoever follows a link to something filtered away wants to see it.
        choose(new URLSearchParams());
        arrange();
        apply();
      }
      if (target) for (let one = target.closest("details"); one; one = one.parentNode.closest("details")) one.open = true;
      if (target && (params || anchor)) target.scrollIntoView();
      keep(anchor);
    };

    form.addEventListener("input", changed);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      choose(new URLSearchParams());
      changed();
      boxes[0].focus();
    });
    const fold = document.getElementById("fold");
    const folds = [...document.querySelectorAll("details.proof")];
    fold.hidden = folds.length === 0;
    fold.addEventListener("click", () => {
      const away = fold.getAttribute("aria-pressed") === "false";
      fold.setAttribute("aria-pressed", String(away));
      for (const one of folds) one.open = !away;
    });
    window.addEventListener("hashchange", arrive);
    form.hidden = false;
    if (location.hash.length > 1) arrive();
    else apply();

    // Paper shows everything, in the order of the spec.
    let before = null;
    window.addEventListener("beforeprint", () => {
      before = query();
      choose(new URLSearchParams());
      arrange();
      apply();
    });
    window.addEventListener("afterprint", () => {
      choose(new URLSearchParams(before ?? ""));
      arrange();
      apply();
    });
  }

  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open])")) {
      fold.open = true;
      fold.dataset.folded = "";
    }
  });
  window.addEventListener("afterprint", () => {
    for (const fold of document.querySelectorAll("details[data-folded]")) {
      fold.open = false;
      delete fold.dataset.folded;
    }
  });

  // The table of contents says where the reader is.
  const links = new Map(
    [...document.querySelectorAll(".contents a")].map((link) => [link.getAttribute("href").slice(1), link]),
  );
  const sections = [...document.querySelectorAll("section.section")];
  const current = () => {
    const line = window.innerHeight / 4;
    const here = sections.filter((section) => section.getBoundingClientRect().top <= line).pop();
    for (const [anchor, link] of links) {
      if (here && here.id === anchor) {
        if (link.getAttribute("aria-current")) continue;
        link.setAttribute("aria-current", "location");
        const list = link.closest(".contents");
        if (list.scrollHeight > list.clientHeight + 1) link.scrollIntoView({ block: "nearest" });
      } else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  window.addEventListener(
    "scroll",
    () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        current();
      });
    },
    { passive: true },
  );
  current();
})();
