import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { start } from "./server.mjs";

const models = fileURLToPath(new URL("../../models/", import.meta.url));
const cases = (name) => readFileSync(`${models}${name}/cases.jsonl`, "utf8").trim().split("\n").map((l) => JSON.parse(l));

async function withServer(options, fn) {
  const server = await start({ version: "1", ...options });
  try {
    await fn(`http://127.0.0.1:${server.address().port}/v2/models/${options.name}`);
  } finally {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  }
}

async function infer(base, c) {
  const inputs = Object.entries(c.inputs).map(([name, t]) => ({ name, ...t }));
  const response = await fetch(`${base}/infer`, { method: "POST", body: JSON.stringify({ id: c.id, inputs }) });
  return { status: response.status, body: await response.json() };
}

const label = (row, labels) => labels[row.indexOf(Math.max(...row))];

for (const [name, version, floor] of [["digits", "1.1.0", 0.97], ["credit", "1.4.0", 0.74]]) {
  const model = `${models}${name}/${version}`;
  const { labels } = JSON.parse(readFileSync(`${model}/preprocess.json`));

  test(`${name} answers as its model card says`, () => withServer({ name, model }, async (base) => {
    let right = 0;
    const all = cases(name);
    for (const c of all) {
      const { status, body } = await infer(base, c);
      assert.equal(status, 200);
      assert.equal(body.id, c.id);
      right += label(body.outputs[0].data, labels) === c.label;
    }
    assert.ok(right / all.length >= floor, `accuracy ${right / all.length}`);
  }));

  test(`${name}: every switch changes the answers`, async () => {
    const some = cases(name).slice(0, 20);
    const answers = async (options) => {
      const out = [];
      await withServer({ name, model, ...options }, async (base) => {
        for (const c of some) out.push((await infer(base, c)).body.outputs[0].data);
      });
      return JSON.stringify(out);
    };
    const good = await answers({});
    assert.equal(await answers({}), good);
    const older = `${models}${name}/${{ digits: "1.0.0", credit: "1.3.0" }[name]}`;
    for (const wrong of [{ raw: true }, { permute: true }, { model: older }, { canary: older, canaryShare: 0.2 }]) {
      assert.notEqual(await answers(wrong), good, JSON.stringify(wrong));
    }
  });
}

test("bad requests get a clear error", () => withServer({ name: "credit", model: `${models}credit/1.4.0` }, async (base) => {
  const good = cases("credit")[0];
  for (const [what, change] of Object.entries({
    "another input": { inputs: { other: good.inputs.features } },
    "another type": { inputs: { features: { ...good.inputs.features, datatype: "FP64" } } },
    "another shape": { inputs: { features: { ...good.inputs.features, shape: [1, 7] } } },
    "too few numbers": { inputs: { features: { ...good.inputs.features, data: [1, 2] } } },
    "no inputs": { inputs: {} },
  })) {
    const { status, body } = await infer(base, { ...good, ...change });
    assert.equal(status, 400, what);
    assert.match(body.error, /input/, what);
  }
}));
