// Follows each run on the page until it has finished. Every word shown comes from the server, in the page's language.
"use strict";

const WHILE_RUNNING = 300;
const WHILE_WAITING = 700;
const WHILE_HIDDEN = 5000;
const LONGEST = 10000;

function show(live, state) {
  live.dataset.status = state.status;
  for (const name of ["label", "step", "sentence"]) {
    setText(live, name, state[name] || "");
  }
  for (const name of ["machine", "machine_id", "region"]) {
    setText(live, name, state[name] || "–");
  }
  setText(live, "seconds", state.seconds == null ? "–" : state.seconds.toFixed(2));
  const bar = live.querySelector("progress");
  if (state.progress == null && !state.finished) {
    bar.removeAttribute("value");
  } else {
    bar.value = state.progress || 0;
  }
  const link = live.querySelector("[data-show=download]");
  link.hidden = !state.download;
  if (state.download) {
    link.href = state.download;
  }
  for (const element of live.parentElement.querySelectorAll("[data-when-finished]")) {
    element.hidden = !state.finished;
  }
}

function setText(live, name, text) {
  const element = live.querySelector(`[data-show=${name}]`);
  // Only a change is written, so that a screen reader says each thing once.
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

async function follow(live) {
  let pause = WHILE_WAITING;
  for (;;) {
    try {
      const answer = await fetch(live.dataset.live, { headers: { accept: "application/json" } });
      if (!answer.ok) {
        throw new Error(`status ${answer.status}`);
      }
      const state = await answer.json();
      show(live, state);
      if (state.finished) {
        if ("reload" in live.closest("section").dataset) {
          location.reload();
        }
        return;
      }
      pause = state.status === "RUNNING" ? WHILE_RUNNING : WHILE_WAITING;
    } catch {
      setText(live, "sentence", live.dataset.lost);
      pause = Math.min(pause * 2, LONGEST);
    }
    await new Promise((resume) => setTimeout(resume, document.hidden ? Math.max(pause, WHILE_HIDDEN) : pause));
  }
}

for (const live of document.querySelectorAll("[data-live]")) {
  if (["READY", "RUNNING"].includes(live.dataset.status)) {
    follow(live);
  }
}
