// The admin's page: each button posts one thing and shows the page anew.
const { csrf, refused, training } = document.body.dataset;
const $ = (id) => document.getElementById(id);

async function send(path, body, kind = "application/json") {
  $("problem").textContent = "";
  let reason;
  try {
    const headers = { "content-type": kind, "x-csrf-token": csrf };
    const answer = await fetch(path, { method: "POST", headers, body: kind === "application/json" ? JSON.stringify(body) : body });
    const said = await answer.json();
    if (answer.ok) return said;
    reason = said.error ?? answer.status;
  } catch (error) {
    reason = error.message;
  }
  $("problem").textContent = refused.replace("{reason}", reason);
  return null;
}

function showLink(said) {
  if (!said) return;
  $("link").hidden = false;
  $("link-text").textContent = said.link;
  $("link").scrollIntoView({ block: "nearest" });
}

for (const button of document.querySelectorAll("button[data-post]"))
  button.addEventListener("click", async () => {
    if (button.dataset.sure && button.textContent !== button.dataset.sure) {
      button.textContent = button.dataset.sure;
      return;
    }
    const said = await send(button.dataset.post, JSON.parse(button.dataset.body));
    if (said?.link) showLink(said);
    else if (said) location.reload();
  });

for (const button of document.querySelectorAll("button[data-pair]"))
  button.addEventListener("click", async () => {
    const key = [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");
    const body = { key, pair: Number(button.dataset.pair), choice: button.dataset.choice || null };
    if (await send("/api/admin/settle", body)) location.reload();
  });

$("invite").addEventListener("click", async () => {
  showLink(await send("/api/admin/invite", { role: $("invite-role").value, name: $("invite-name").value.trim() || null }));
});
$("copy").addEventListener("click", () => navigator.clipboard?.writeText($("link-text").textContent));

$("import")?.addEventListener("click", async () => {
  const [file] = $("file").files;
  if (!file) return;
  const dot = file.name.lastIndexOf(".");
  const name = file.name.slice(0, dot).toLowerCase().replace(/[^a-z0-9._-]+/g, "-").slice(0, 64) || "file";
  const query = new URLSearchParams({ name, kind: file.name.slice(dot + 1).toLowerCase() });
  const said = await send(`/api/admin/import?${query}`, file, "application/octet-stream");
  if (said) $("done").textContent = said.said;
});

function showTraining(said) {
  $("train").disabled = said.is_running;
  $("trained").textContent = said.is_running ? `${training} … ${said.said}` : said.said;
  if (said.is_running) setTimeout(async () => showTraining(await (await fetch("/api/admin/reward")).json()), 1000);
}
if ($("train")) {
  $("train").addEventListener("click", async () => { const said = await send("/api/admin/reward", {}); if (said) showTraining(said); });
  fetch("/api/admin/reward").then((answer) => answer.json()).then(showTraining);
}
