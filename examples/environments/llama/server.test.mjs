import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { quantize } from "./quantize.mjs";
import { start } from "./server.mjs";

const folder = fileURLToPath(new URL("../../models/assistant/", import.meta.url));
const f16 = `${folder}assistant-f16.gguf`;
const cases = readFileSync(`${folder}cases.jsonl`, "utf8").trim().split("\n").map((l) => JSON.parse(l));
const dir = mkdtempSync(join(tmpdir(), "llama-"));
after(() => rmSync(dir, { recursive: true }));
for (const kind of ["q8_0", "q4_0"]) quantize(kind, f16, join(dir, `${kind}.gguf`));

async function withServer(options, fn) {
  const server = await start({ name: "assistant", model: f16, ...options });
  try {
    return await fn(async (body, path = "chat/completions") => {
      const response = await fetch(`http://127.0.0.1:${server.address().port}/v1/${path}`, { method: "POST", body: JSON.stringify({ model: "assistant", temperature: 0, max_tokens: 100, ...body }) });
      return { status: response.status, text: await response.text() };
    });
  } finally {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  }
}

/** What a server answers to cases: the text or call, and the log probabilities. */
const answers = (options, list) => withServer(options, async (ask) => {
  const out = [];
  for (const c of list) {
    const { status, text } = await ask({ ...c.request, logprobs: true });
    assert.equal(status, 200, text);
    const [choice] = JSON.parse(text).choices;
    const call = choice.message.tool_calls?.[0].function;
    out.push({ text: call ? JSON.stringify({ arguments: JSON.parse(call.arguments), name: call.name }) : choice.message.content, logprobs: choice.logprobs.content.map((t) => t.logprob) });
  }
  return out;
});

function difference(a, b) {
  let texts = 0, largest = 0;
  a.forEach((x, i) => {
    if (x.text !== b[i].text) texts++;
    else x.logprobs.forEach((v, j) => { largest = Math.max(largest, Math.abs(v - b[i].logprobs[j])); });
  });
  return { texts, largest };
}

const some = cases.slice(0, 40);
const reference = answers({}, some);

test("it answers as its training says, the same each time and with two threads", async () => {
  const right = (await reference).filter((a, i) => a.text === some[i].label).length;
  assert.ok(right >= 0.75 * some.length, `${right} of ${some.length} answers are right to the letter`);
  // Threads of llama.cpp wait for each other by spinning: a few cases are enough.
  const few = some.slice(0, 8);
  for (const options of [{}, { threads: 2 }]) {
    const d = difference((await reference).slice(0, 8), await answers(options, few));
    assert.equal(d.texts, 0);
    assert.ok(d.largest < 1e-3, `log probabilities differ by ${d.largest}`);
  }
});

test("q8_0 and q4_0 are further and further away", async (t) => {
  const q8 = difference(await reference, await answers({ model: join(dir, "q8_0.gguf") }, some));
  const q4 = difference(await reference, await answers({ model: join(dir, "q4_0.gguf") }, some));
  t.diagnostic(`q8_0: ${q8.texts} texts differ, log probabilities by ${q8.largest}; q4_0: ${q4.texts}, ${q4.largest}`);
  assert.ok(q8.largest > 1e-3 && q8.texts <= 3);
  assert.ok(q4.texts > q8.texts && q4.texts > 0);
});

test("every switch changes the answers", async () => {
  const want = (await reference).slice(0, 20);
  const few = some.slice(0, 20);
  for (const wrong of [{ doubleBos: true }, { noGenerationPrompt: true }, { canary: join(dir, "q4_0.gguf"), canaryShare: 0.5 }, { temperature: 1.5 }]) {
    const d = difference(want, await answers(wrong, few));
    assert.ok(d.texts > 0 || d.largest > 1e-3, JSON.stringify(wrong));
  }
});

test("a parameter is heeded or refused", () => withServer({}, async (ask) => {
  const messages = [{ role: "user", content: "Spell bank." }];
  for (const bad of [{ temperature: 3 }, { presence_penalty: 1 }, { foo: 1 }, { max_tokens: 0 }, { response_format: { type: "json_object" } }, { messages: undefined }, { tool_choice: "required" }, { messages: [{ role: "user", content: "x".repeat(300) }] }]) {
    const { status, text } = await ask({ messages, ...bad });
    assert.equal(status, 400, JSON.stringify(bad));
    assert.ok(JSON.parse(text).error.message);
  }
  assert.equal((await ask({ messages, model: "another" })).status, 404);
  const text = async (more) => JSON.parse((await ask({ messages, ...more })).text).choices[0];
  assert.equal((await text({})).message.content, "b-a-n-k.");
  assert.deepEqual([(await text({ max_tokens: 3 })).message.content, (await text({ max_tokens: 3 })).finish_reason], ["b-a", "length"]);
  assert.deepEqual([(await text({ stop: "n" })).message.content, (await text({ stop: "n" })).finish_reason], ["b-a-", "stop"]);
  const balance = cases.find((c) => c.slice.kind === "tool").request;
  assert.equal(JSON.parse((await ask(balance)).text).choices[0].finish_reason, "tool_calls");
  assert.notEqual(JSON.parse((await ask({ ...balance, tool_choice: "none" })).text).choices[0].finish_reason, "tool_calls");
}));

test("what is streamed is what comes whole", () => withServer({}, async (ask) => {
  for (const c of cases.slice(0, 10)) {
    const whole = JSON.parse((await ask({ ...c.request, logprobs: true })).text);
    const { text } = await ask({ ...c.request, logprobs: true, stream: true, stream_options: { include_usage: true } });
    const events = text.trim().split("\n\n").map((e) => e.replace(/^data: /, ""));
    assert.equal(events.pop(), "[DONE]");
    const chunks = events.map((e) => JSON.parse(e));
    assert.deepEqual(chunks.pop().usage, whole.usage);
    const [want] = whole.choices;
    const deltas = chunks.map((x) => x.choices[0]);
    assert.equal(deltas.map((d) => d.delta.content ?? "").join(""), want.message.content ?? "");
    assert.deepEqual(deltas.flatMap((d) => d.delta.tool_calls ?? []).map((t) => t.function), (want.message.tool_calls ?? []).map((t) => t.function));
    assert.deepEqual(deltas.flatMap((d) => d.logprobs?.content ?? []), want.logprobs.content);
    assert.equal(deltas.at(-1).finish_reason, want.finish_reason);
  }
}));

test("embeddings are the same each time and nearly so with two threads, and not when rounded", async () => {
  const input = cases.slice(0, 5).map((c) => c.request.messages[0].content);
  const embeddings = (options, more) => withServer(options, async (ask) => {
    const { status, text } = await ask({ input, temperature: undefined, max_tokens: undefined, ...more }, "embeddings");
    assert.equal(status, 200, text);
    const { data, usage } = JSON.parse(text);
    assert.deepEqual(data.map((d) => d.index), [0, 1, 2, 3, 4]);
    assert.ok(usage.prompt_tokens > 5);
    return data.map((d) => d.embedding);
  });
  const cosine = (a, b) => a.reduce((s, x, i) => s + x * b[i], 0) / Math.hypot(...a) / Math.hypot(...b);
  const want = await embeddings({});
  assert.equal(want[0].length, 128);
  assert.ok(cosine(want[0], want[1]) < 0.9999, "two texts have the same embedding");
  assert.deepEqual(await embeddings({}), want);
  const bits = (await embeddings({}, { encoding_format: "base64" })).map((b) => [...new Float32Array(Uint8Array.from(Buffer.from(b, "base64")).buffer)]);
  assert.deepEqual(bits, want);
  (await embeddings({ threads: 2 })).forEach((e, i) => assert.ok(cosine(e, want[i]) > 1 - 1e-6));
  (await embeddings({ model: join(dir, "q4_0.gguf") })).forEach((e, i) => assert.ok(cosine(e, want[i]) < 1 - 1e-4, `${cosine(e, want[i])}`));
  await withServer({}, async (ask) => {
    for (const bad of [{ input: [] }, { input: [[1, 2]] }, { dimensions: 5 }, { encoding_format: "int8" }, { input: "x".repeat(300) }]) {
      assert.equal((await ask({ input, temperature: undefined, max_tokens: undefined, ...bad }, "embeddings")).status, 400, JSON.stringify(bad));
    }
  });
});
