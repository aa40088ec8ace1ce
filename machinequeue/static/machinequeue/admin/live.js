"use strict";
// Keeps the page of something unfinished fresh: fetches the same page and takes over what changed.
(() => {
    const control = () => document.querySelector("[data-mq-live]");
    let paused = false;

    const busy = () => {
        const selection = document.getSelection();
        return paused || document.hidden || (selection !== null && !selection.isCollapsed);
    };

    const remember = (content) => ({
        open: new Map([...content.querySelectorAll("details")].map((each, index) => [index, each.open])),
        focused: document.activeElement?.id,
        scrolled: new Map([...content.querySelectorAll("pre")].map((each, index) => [
            index,
            { top: each.scrollTop, atEnd: each.scrollTop > 0 && each.scrollTop + each.clientHeight >= each.scrollHeight - 4 },
        ])),
    });

    const restore = (content, before) => {
        content.querySelectorAll("details").forEach((each, index) => {
            each.open = before.open.get(index) ?? each.open;
        });
        content.querySelectorAll("pre").forEach((each, index) => {
            const was = before.scrolled.get(index);
            each.scrollTop = was ? (was.atEnd ? each.scrollHeight : was.top) : 0;
        });
        if (before.focused) {
            document.getElementById(before.focused)?.focus({ preventScroll: true });
        }
    };

    const takeOver = (fresh) => {
        const content = document.querySelector("#content-main");
        const next = fresh.querySelector("#content-main");
        if (!content || !next) {
            return false; // the row is gone, or the session has ended
        }
        const before = remember(content);
        content.innerHTML = next.innerHTML;
        restore(content, before);
        const tools = document.querySelector(".object-tools");
        const nextTools = fresh.querySelector(".object-tools");
        if (!fresh.querySelector("[data-mq-live]") || tools.children.length !== nextTools.children.length) {
            tools.innerHTML = nextTools.innerHTML;
        }
        return true;
    };

    const refresh = async () => {
        const marker = control();
        if (!marker) {
            return; // it has finished
        }
        let going = true;
        if (!busy()) {
            try {
                const answer = await fetch(location.href, { headers: { "X-Requested-With": "fetch" } });
                const text = await answer.text();
                going = !answer.ok || busy() || takeOver(new DOMParser().parseFromString(text, "text/html"));
            } catch {
                // The site restarts or the network is away: try again.
            }
        }
        if (going) {
            setTimeout(refresh, Number(marker.dataset.mqLive));
        }
    };

    document.addEventListener("click", (event) => {
        const marker = event.target.closest?.("[data-mq-live]");
        if (!marker) {
            return;
        }
        event.preventDefault();
        paused = !paused;
        [marker.textContent, marker.dataset.mqOther] = [marker.dataset.mqOther, marker.textContent];
    });

    document.addEventListener("DOMContentLoaded", () => {
        const marker = control();
        if (marker) {
            setTimeout(refresh, Number(marker.dataset.mqLive));
        }
    });
})();
