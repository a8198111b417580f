// Fills the page from /api/v1/funnel every other second. All text goes in as text nodes: names from events are
// never markup. The address of the page is the choice of the reader, so that it can be shared.
"use strict";

const EVERY_MS = 2000;
const LATE_SECONDS = 300;
const LONG_AGO_SECONDS = 900;
const AGE_BANDS = { "0-5m": "standard", "5-15m": "watch" };  // later than that: critical
const SVG = "http://www.w3.org/2000/svg";

const number = new Intl.NumberFormat();
const percent = new Intl.NumberFormat(undefined, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 0 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const byId = (id) => document.getElementById(id);

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function rect(x, width, attributes = {}) {
  const made = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ x, width, height: "100%", ...attributes })) made.setAttribute(name, value);
  return made;
}

function drawing(name, shapes) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", name);
  svg.setAttribute("aria-hidden", "true");
  svg.append(...shapes);
  return svg;
}

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${number.format(Math.round(seconds / 86400))} days`;
}

function drawFunnel(funnel) {
  const most = Math.max(1, ...funnel.stages.map((stage) => stage.leads));
  funnel.stages.forEach((stage, place) => {
    const [bars, leads, kept, events] = byId("funnel").tBodies[0].rows[place].querySelectorAll("td");
    bars.replaceChildren(drawing("bar", [rect(0, `${100 * stage.leads / most}%`)]));
    write(leads, number.format(stage.leads));
    const before = place ? funnel.stages[place - 1].leads : 0;
    write(kept, !place ? "" : before ? whole.format(stage.leads / before) : "–");
    write(events, number.format(stage.events));
  });
  const implied = funnel.counts.find((count) => count.name === "implied_arrivals");
  write(byId("calls"), [
    ...funnel.counts.filter((count) => count !== implied && count.count).map((count) => `${number.format(count.count)} ${count.title}`),
    `${number.format(funnel.closed.disqualified)} disqualified`,
    `${number.format(funnel.closed.lost)} lost`,
  ].join(" · "));
  byId("implied").hidden = !implied.count;
  write(byId("implied"), `${number.format(implied.count)} arrivals have no event of their own: a later event proves that the `
    + "lead passed the stage (a lead that was dialed must have been created).");
}

// The bands of a standard side by side, the one that holds now in full colour, and a mark at the value.
function meter(rate) {
  const steps = [{ band: "critical", from: 0 }, ...rate.standard];
  const end = Math.min(1, 1.5 * steps.at(-1).from);
  const at = (value) => `${100 * Math.min(value, end) / end}%`;
  const zones = steps.map((step, place) => rect(
    at(step.from), at((steps[place + 1]?.from ?? end) - step.from),
    { "data-band": step.band, class: step.band === rate.band ? "zone now" : "zone" },
  ));
  return drawing("meter", rate.value === null ? zones : [...zones, rect(at(rate.value), 4, { class: "mark", transform: "translate(-2)" })]);
}

function drawRate(rate) {
  const card = byId(rate.name);
  if (rate.band) card.dataset.band = rate.band;
  else delete card.dataset.band;
  write(card.querySelector(".value"), rate.value === null ? "–" : percent.format(rate.value));
  const parts = card.querySelector(".parts") ?? card.querySelector(".value").appendChild(document.createElement("span"));
  parts.className = "parts";
  write(parts, ` ${number.format(rate.numerator)} of ${number.format(rate.denominator)}`);
  if (!rate.standard.length) return;
  card.querySelector(".meter")?.remove();
  card.querySelector(".standard")?.remove();
  const standard = document.createElement("p");
  standard.className = "standard";
  const band = document.createElement("b");
  band.textContent = rate.band ?? rate.unjudged;
  const rest = rate.standard.filter((step) => step.band !== "watch").map((step) => `${step.band} from ${whole.format(step.from)}`);
  standard.append(band, ` · ${rest.join(", ")}`);
  card.querySelector(".of").before(meter(rate), standard);
  write(card.querySelector(".advice"), rate.when_below);
}

function drawUncalled({ uncalled, now_timestamp_seconds: now, watermark }) {
  const card = byId("uncalled");
  const oldest = uncalled.oldest_timestamp_seconds;
  write(card.querySelector(".value"), number.format(uncalled.leads));
  if (oldest === null) {
    delete card.dataset.band;
    write(byId("oldest"), watermark.delay_seconds === null ? "No lead has come in yet." : "Every open lead has been called.");
  } else {
    card.dataset.band = now - oldest > LONG_AGO_SECONDS ? "critical" : now - oldest > LATE_SECONDS ? "watch" : "standard";
    write(byId("oldest"), `The oldest has waited for ${span(now - oldest)}, since ${moment.format(oldest * 1000)}.`);
  }
  Object.entries(uncalled.ages).forEach(([age, leads], place) => {
    const item = byId("ages").children[place];
    write(item.querySelector("b"), number.format(leads));
    if (leads) item.dataset.band = AGE_BANDS[age] ?? "critical";
    else delete item.dataset.band;
  });
}

function drawArchived({ window, archived }) {
  byId("archived").hidden = window !== "all" || !archived.leads;
  write(byId("archived"), `${number.format(archived.leads)} leads without an event since `
    + `${day.format(archived.before_timestamp_seconds * 1000)} are archived. They count here as the settings of then counted them; `
    + `${number.format(archived.uncalled)} of them were never called, and are not among the uncalled leads.`);
}

function drawDurations(durations) {
  const told = durations.filter((one) => one.leads).map((one) => `${one.title}: ${span(one.mean_seconds)} on average, ${number.format(one.leads)} leads`);
  byId("durations").hidden = !told.length;
  write(byId("durations"), told.join(" · "));
}

function offer(name, names) {
  const select = byId(name);
  const chosen = choice[name];
  const wanted = chosen && !names.includes(chosen) ? [...names, chosen] : names;
  const held = [...select.options].slice(1).map((option) => option.value);
  if (held.length !== wanted.length || held.some((value, place) => value !== wanted[place])) {
    select.replaceChildren(select.options[0], ...wanted.map((value) => new Option(value, value)));
  }
  select.value = chosen;
}

function link(grafana) {
  byId("dashboards").hidden = !grafana;
  for (const anchor of byId("dashboards").querySelectorAll("a")) {
    const place = new URLSearchParams(["campaign", "source"].filter((name) => choice[name]).map((name) => [`var-${name}`, choice[name]]));
    if (grafana) anchor.href = `${grafana.replace(/\/+$/, "")}/d/${anchor.dataset.board}${place.size ? `?${place}` : ""}`;
  }
}

function say(state, word, { freshness = "", trouble = "" } = {}) {
  write(byId("freshness"), freshness);  // not read aloud: it changes all the time
  byId("state").dataset.state = state;
  write(byId("state"), word);
  write(byId("trouble"), trouble);
  byId("trouble").hidden = !trouble;
  byId("main").classList.toggle("stale", state === "down" || state === "wait");
}

// What the API calls the state: the colour and the word for it. The server says the rest.
const STATES = {
  live: ["live", "live"], replay: ["live", "replay"], quiet: ["late", "no new events"], behind: ["late", "behind"],
  unchecked: ["late", "not checked"], empty: ["wait", "no events yet"], stale: ["wait", "standing still"],
};

function sentence(text) {
  return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function warn(poisoned) {
  const shares = Object.entries(poisoned).map(([partition, share]) => `${whole.format(share)} of the newest records of partition ${partition}`);
  byId("poisoned").hidden = !shares.length;
  write(byId("poisoned"), `${shares.join(", ")} are rejected and missing from these numbers. The worker's log says which, and why.`);
}

function judge(funnel) {
  const { delay_seconds: delay } = funnel.watermark;
  const asOf = ` · as of ${moment.format(funnel.now_timestamp_seconds * 1000)}`;
  const freshness = delay === null ? "" : ["replay", "behind"].includes(funnel.state) ? asOf : ` · newest event ${span(delay)} ago`;
  const [colour, word] = STATES[funnel.state] ?? ["late", funnel.state];
  const trouble = funnel.state === "quiet" ? `No event for ${span(delay)}: ${funnel.reason}.` : sentence(funnel.reason);
  say(colour, word, { freshness, trouble });
}

let latest = 0;
let answeredAt = null;
async function refresh() {
  const mine = ++latest;
  const query = new URLSearchParams(Object.entries(choice).filter(([, value]) => value));
  let answer, funnel;
  try {
    answer = await fetch(`api/v1/funnel?${query}`, { signal: AbortSignal.timeout(5000) });
    funnel = await answer.json();
  } catch {
    if (mine !== latest) return;
    const since = answeredAt ? ` since ${clock.format(answeredAt)}. These are the last numbers it gave` : "";
    say("down", "no answer", { trouble: `callfunnel does not answer${since}. This page goes on trying.` });
    return;
  }
  if (mine !== latest) return;  // the choice has changed meanwhile
  offer("campaign", funnel.campaigns ?? []);
  offer("source", funnel.sources ?? []);
  if (!answer.ok) {
    const [colour, word] = STATES[funnel.state] ?? ["wait", "no numbers"];
    const kept = answeredAt ? ` What is shown is of ${clock.format(answeredAt)}.` : "";
    say(colour, word, { trouble: `No numbers: ${funnel.error ?? `HTTP ${answer.status}`}.${kept}` });
    return;
  }
  answeredAt = Date.now();
  drawFunnel(funnel);
  [...funnel.ratios, funnel.response].forEach(drawRate);
  drawUncalled(funnel);
  drawArchived(funnel);
  drawDurations(funnel.durations);
  link(funnel.grafana);
  byId("json").href = `api/v1/funnel?${query}`;
  judge(funnel);
  warn(funnel.poisoned);
}

const asked = new URLSearchParams(location.search);
const choice = { window: "1h", campaign: asked.get("campaign") ?? "", source: asked.get("source") ?? "" };
for (const input of document.querySelectorAll("input[name=window]")) {
  if (input.value === asked.get("window")) choice.window = input.value;
  input.checked = input.value === choice.window;
}
byId("choice").addEventListener("change", (event) => {
  choice[event.target.name || event.target.id] = event.target.value;
  history.replaceState(null, "", `?${new URLSearchParams(Object.entries(choice).filter(([, value]) => value))}`);
  refresh();
});
byId("choice").addEventListener("submit", (event) => event.preventDefault());
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
