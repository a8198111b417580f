// Draws /api/v1/funnel every other second. All text goes in as text nodes: names from events are never markup.
"use strict";

const EVERY_MS = 2000;
const STALE_SECONDS = 300;
const TITLES = {
  reach: "Reach", qualification: "Qualification", close: "Close", conversion: "Leads to wins",
  response: "Called in 5 minutes",
};
const AGE_BANDS = { "0-5m": "standard", "5-15m": "watch" };  // later than that: critical

const number = new Intl.NumberFormat();
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const byId = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  return made;
}

function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS(space, "rect");
  rect.setAttribute("width", `${100 * share}%`);
  rect.setAttribute("height", "100%");
  svg.append(rect);
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
  byId("funnel").tBodies[0].replaceChildren(...funnel.stages.map((stage) => {
    const row = element("tr");
    const bars = element("td", undefined, { class: "bars" });
    bars.append(bar(stage.leads / most));
    row.append(
      element("th", stage.stage, { scope: "row" }), bars,
      element("td", number.format(stage.leads), { class: "n" }),
      element("td", number.format(stage.events), { class: "n" }),
    );
    return row;
  }));
  const calls = funnel.calls;
  byId("calls").textContent = [
    `${number.format(calls.dm_hangups)} immediate hang-ups`,
    `${number.format(calls.machine_answers)} answered by machines`,
    `${number.format(funnel.closed.disqualified)} disqualified`,
    `${number.format(funnel.closed.lost)} lost`,
  ].join(" · ");
}

function card(rate) {
  const box = element("div", undefined, { class: "card", "data-band": rate.band });
  const value = element("p", rate.value === null ? "–" : percent.format(rate.value), { class: "value" });
  box.append(
    element("h3", TITLES[rate.name]), value,
    element("p", rate.band ?? (rate.value === null ? "nothing to measure yet" : "no standard"), { class: "band" }),
    element("p", `${number.format(rate.numerator)} of ${number.format(rate.denominator)}`),
    element("p", rate.standard.filter((step) => step.band !== "watch")
      .map((step) => `${step.band} from ${percent.format(step.from)}`).join(", ") || rate.definition),
  );
  box.title = rate.definition;
  return box;
}

function drawUncalled(uncalled, now) {
  const oldest = uncalled.oldest_timestamp_seconds;
  byId("oldest").textContent = oldest === null
    ? "Every open lead has been called."
    : `${number.format(uncalled.leads)} open leads are not called yet; the oldest waits for ${span(now - oldest)}.`;
  byId("ages").replaceChildren(...Object.entries(uncalled.ages).map(([age, leads]) => {
    const box = element("div", undefined, {
      class: "age", "data-band": leads ? AGE_BANDS[age] ?? "critical" : null,
    });
    box.append(element("b", number.format(leads)), element("span", age.replace("over-", "over ")));
    return box;
  }));
}

function offer(select, names) {
  const wanted = select.value || new URLSearchParams(location.search).get(select.id) || "";
  const held = [...select.options].slice(1).map((option) => option.value);
  if (held.length === names.length && held.every((name, n) => name === names[n])) return;
  select.replaceChildren(element("option", "all", { value: "" }), ...names.map((name) => {
    const option = element("option", name);
    option.value = name;
    return option;
  }));
  select.value = names.includes(wanted) ? wanted : "";
}

function say(state, text, freshness = "") {
  byId("freshness").textContent = freshness;  // not read aloud: it changes all the time
  const line = byId("state");
  line.dataset.state = state;
  if (line.textContent !== text) line.textContent = text;
  byId("main").classList.toggle("stale", state === "down" || state === "wait");
}

function choice() {
  const asked = new URLSearchParams();
  asked.set("window", document.querySelector("input[name=window]:checked").value);
  for (const id of ["campaign", "source"]) if (byId(id).value) asked.set(id, byId(id).value);
  return asked;
}

let latest = 0;
async function refresh() {
  const mine = ++latest;
  let answer, funnel;
  try {
    answer = await fetch(`api/v1/funnel?${choice()}`, { signal: AbortSignal.timeout(5000) });
    funnel = await answer.json();
  } catch {
    if (mine === latest) say("down", "no answer, these are the last numbers known");
    return;
  }
  if (mine !== latest) return;  // the choice has changed meanwhile
  if (!answer.ok) {
    say("wait", funnel.error ?? `HTTP ${answer.status}`);
    return;
  }
  drawFunnel(funnel);
  byId("rates").replaceChildren(...[...funnel.ratios, funnel.response].map(card));
  drawUncalled(funnel.uncalled, funnel.now_timestamp_seconds);
  offer(byId("campaign"), funnel.campaigns);
  offer(byId("source"), funnel.sources);
  const delay = funnel.watermark.delay_seconds;
  if (delay === null) say("wait", "no events yet");
  else say(...delay > STALE_SECONDS ? ["late", "no new events"] : ["live", "live"], delay < 1 ? "" : `, newest ${span(delay)} ago`);
}

function chosen() {
  history.replaceState(null, "", `?${choice()}`);
  refresh();
}

const asked = new URLSearchParams(location.search);
for (const input of document.querySelectorAll("input[name=window]")) {
  if (input.value === asked.get("window")) input.checked = true;
}
byId("choice").addEventListener("change", chosen);
byId("choice").addEventListener("submit", (event) => event.preventDefault());
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
