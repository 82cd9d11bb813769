"use strict";
const root = document.body.dataset.root;
const by = name => document.getElementById(`site-${name}`);

by("theme").onclick = () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next) } catch (e) { /* private window */ }
};

by("menu").onclick = () => {
  const open = document.body.classList.toggle("menu");
  by("menu").setAttribute("aria-expanded", open);
};

if (by("unfold")) by("unfold").onclick = event => {
  const all = [...document.querySelectorAll("details.code")], open = all.some(d => !d.open);
  all.forEach(d => { d.open = open });
  event.target.textContent = open ? "hide all code" : "show all code";
};

// A link to something inside a folded part opens it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  target.querySelectorAll(":scope > details.code").forEach(d => { d.open = true });
  target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();

const current = document.querySelector('#site-contents [aria-current]');
if (current) by("contents").scrollTop = Math.max(0, current.offsetTop - by("contents").clientHeight / 3);

// On-page contents follow the reader.
const entries = new Map([...document.querySelectorAll("aside a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]));
const watch = new IntersectionObserver(seen => seen.forEach(s => {
  if (!s.isIntersecting) return;
  entries.forEach(a => a.classList.remove("here"));
  entries.get(s.target.id).classList.add("here");
}), { rootMargin: "0px 0px -75% 0px" });
entries.forEach((_, id) => document.getElementById(id) && watch.observe(document.getElementById(id)));

// Search: the index is a script, so that it can be read from a disk too.
let index = null, chosen = -1;
function load(then) {
  if (index) return then();
  const script = document.createElement("script");
  script.src = root + "assets/search.js";
  script.onload = () => { index = window.searchIndex.map(e => [...e, e[1].toLowerCase(), e[2].toLowerCase(), e[3].toLowerCase()]); then() };
  document.head.append(script);
}

function score(entry, words) {
  let sum = 0;
  for (const word of words) {
    const title = entry[4], section = entry[5];
    const value = section === word ? 60 : section.startsWith(word) ? 30 : section.includes(word) ? 20 : title.startsWith(word) ? 12 : title.includes(word) ? 8 : entry[6].includes(word) ? 3 : 0;
    if (!value) return 0;
    sum += value;
  }
  return sum;
}

function snippet(entry, words) {
  const at = Math.max(0, ...words.map(word => entry[6].indexOf(word)));
  const from = Math.max(0, at - 50);
  return (from ? "… " : "") + entry[3].slice(from, from + 150) + (entry[3].length > from + 150 ? " …" : "");
}

function marked(parent, text, words) {
  const pattern = new RegExp(`(${words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  text.split(pattern).forEach((part, k) => {
    if (k % 2) parent.append(Object.assign(document.createElement("mark"), { textContent: part }));
    else parent.append(part);
  });
}

function find() {
  const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean), box = by("found");
  chosen = -1;
  box.replaceChildren();
  box.hidden = !words.length;
  if (!words.length) return;
  const hits = index.map(entry => [score(entry, words), entry]).filter(([value]) => value).sort((a, b) => b[0] - a[0]).slice(0, 40);
  if (!hits.length) box.textContent = "nothing found";
  for (const [, entry] of hits) {
    const link = Object.assign(document.createElement("a"), { href: root + entry[0], role: "option" });
    const head = document.createElement("b"), text = document.createElement("small");
    marked(head, entry[2] && entry[2] !== entry[1] ? `${entry[2]} – ${entry[1]}` : entry[1], words);
    marked(text, snippet(entry, words), words);
    link.append(head, text);
    link.onclick = () => { box.hidden = true };
    box.append(link);
  }
}

by("search").onfocus = by("search").oninput = () => load(find);
by("search").onkeydown = event => {
  const links = [...by("found").querySelectorAll("a")];
  if (event.key === "Escape") { by("found").hidden = true; by("search").blur() }
  if (event.key === "Enter" && links.length) links[Math.max(chosen, 0)].click();
  if (!["ArrowDown", "ArrowUp"].includes(event.key) || !links.length) return;
  event.preventDefault();
  links[chosen]?.classList.remove("chosen");
  chosen = (chosen + (event.key === "ArrowDown" ? 1 : -1) + links.length) % links.length;
  links[chosen].classList.add("chosen");
  links[chosen].scrollIntoView({ block: "nearest" });
};
addEventListener("keydown", event => {
  if (event.key === "/" && !["INPUT", "TEXTAREA"].includes(document.activeElement.tagName)) { event.preventDefault(); by("search").focus() }
});
addEventListener("click", event => { if (!event.target.closest(".find")) by("found").hidden = true });
