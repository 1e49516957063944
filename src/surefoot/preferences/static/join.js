// Joining: the invitation is in a cookie, the name is posted, and the label page follows.
const name = document.getElementById("name");
const problem = document.getElementById("problem");

async function join() {
  problem.textContent = "";
  const headers = { "content-type": "application/json", "x-csrf-token": document.body.dataset.csrf };
  const answer = await fetch("/api/join", { method: "POST", headers, body: JSON.stringify({ name: name.value.trim() }) });
  if (answer.ok) location.assign("/");
  else problem.textContent = (await answer.json()).error;
}

document.getElementById("join").addEventListener("click", join);
name.addEventListener("keydown", (event) => { if (event.key === "Enter") join(); });
name.focus();
