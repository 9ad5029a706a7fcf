import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { start } from "./server.mjs";

const models = fileURLToPath(new URL("../../models/", import.meta.url));
const all = readFileSync(`${models}credit/cases.jsonl`, "utf8").trim().split("\n").map((l) => JSON.parse(l));
const { labels } = JSON.parse(readFileSync(`${models}credit/1.4.0/preprocess.json`));

async function answers(options, list) {
  const server = await start({ version: "1", name: "credit", ...options });
  const out = [];
  for (const c of list) {
    const inputs = Object.entries(c.inputs).map(([name, t]) => ({ name, ...t }));
    const response = await fetch(`http://127.0.0.1:${server.address().port}/v2/models/credit/infer`, { method: "POST", body: JSON.stringify({ id: c.id, inputs }) });
    assert.equal(response.status, 200);
    out.push((await response.json()).outputs[0].data);
  }
  server.closeAllConnections();
  await new Promise((done) => server.close(done));
  return out;
}

test("credit answers as its model card says, the same each time", async () => {
  const first = await answers({ model: `${models}credit/1.4.0` }, all);
  const right = all.filter((c, i) => labels[first[i].indexOf(Math.max(...first[i]))] === c.label).length;
  assert.ok(right / all.length >= 0.74, `accuracy ${right / all.length}`);
  const some = all.slice(0, 30);
  assert.deepEqual(await answers({ model: `${models}credit/1.4.0` }, some), first.slice(0, 30));
  assert.notDeepEqual(await answers({ model: `${models}credit/1.3.0` }, some), first.slice(0, 30));
});
