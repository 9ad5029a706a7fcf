// Serves a language model with llama.cpp behind OpenAI's interface: chats and
// completions, with log probabilities, tool calls and streams, and embeddings,
// which are the last token's state in front of the output. It is one of
// the example's deployment environments, and can be made wrong on purpose: see
// the options.
//
// A parameter is heeded or refused: an answer never depends on one that was
// passed over in silence.
import { createHash, randomUUID } from "node:crypto";
import { readFileSync, realpathSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Template } from "@huggingface/jinja";
import { getLlama, LlamaLogLevel, readGgufFileInfo, TokenBias } from "node-llama-cpp";

class Refusal extends Error {
  constructor(message, param = null, status = 400) {
    super(message);
    Object.assign(this, { param, status });
  }
}

/** What is made when it is first asked for. */
function once(make) {
  let made;
  return () => (made ??= make());
}

/** A model that is loaded, and one context of it. */
async function load(llama, path, threads) {
  const model = await llama.loadModel({ modelPath: path });
  const context = await model.createContext({ contextSize: model.trainContextSize, batchSize: model.trainContextSize, threads });
  const info = await readGgufFileInfo(path);
  return {
    model, sequence: context.getSequence(), size: model.trainContextSize,
    template: info.metadata.tokenizer.chat_template, fileType: info.metadata.general.file_type,
    special: (text) => model.tokenize(text, true)[0],
    embeddings: once(() => model.createEmbeddingContext({ contextSize: model.trainContextSize, batchSize: model.trainContextSize, threads })),
  };
}

/** What every parameter has to be, and what it is if it is not said. */
const number = (low, high) => (v) => typeof v === "number" && v >= low && v <= high;
const whole = (low, high) => (v) => Number.isInteger(v) && v >= low && v <= high;
const only = (...values) => (v) => values.includes(v);
const PARAMETERS = {
  temperature: [number(0, 2), 1], top_p: [number(0, 1), 1], top_k: [whole(0, 1 << 20), 0], min_p: [number(0, 1), 0], seed: [whole(0, 2 ** 31 - 1), 0],
  n: [whole(1, 8), 1], max_tokens: [whole(1, 4096), 16], stop: [(v) => v === null || typeof v === "string" || (Array.isArray(v) && v.every((s) => typeof s === "string")), null],
  stream: [only(true, false), false], stream_options: [(v) => typeof v === "object", {}],
  presence_penalty: [only(0), 0], frequency_penalty: [only(0), 0], repeat_penalty: [only(1), 1], typical_p: [only(1), 1], dry_multiplier: [only(0), 0],
  xtc_probability: [only(0), 0], mirostat: [only(0), 0], cache_prompt: [only(false), false], ignore_eos: [only(false), false], echo: [only(false), false], best_of: [only(1), 1],
};
const CHAT = {
  ...PARAMETERS, messages: [Array.isArray], logprobs: [only(true, false), false], top_logprobs: [whole(0, 20), 0], response_format: [(v) => v?.type === "text", { type: "text" }],
  tools: [Array.isArray, []], tool_choice: [only("auto", "none"), "auto"], parallel_tool_calls: [only(true, false), true],
};
const COMPLETION = { ...PARAMETERS, prompt: [(v) => typeof v === "string"], logprobs: [(v) => v === null || whole(0, 20)(v), null] };
const EMBEDDINGS = {
  input: [(v) => typeof v === "string" || (Array.isArray(v) && v.length > 0 && v.every((s) => typeof s === "string"))], encoding_format: [only("float", "base64"), "float"],
};

function parameters(table, q) {
  for (const k of Object.keys(q)) {
    if (k !== "model" && !table[k]) throw new Refusal(`parameter ${k} is not known here`, k);
  }
  const out = {};
  for (const [k, [valid, initial]] of Object.entries(table)) {
    out[k] = q[k] === undefined ? initial : q[k];
    if (out[k] === undefined) throw new Refusal(`parameter ${k} is missing`, k);
    if (!valid(out[k])) throw new Refusal(`parameter ${k} cannot be ${JSON.stringify(out[k])} here`, k);
  }
  return out;
}

export async function start(options) {
  const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error });
  const threads = options.threads ?? 1;
  const main = await load(llama, options.model, threads);
  const canary = options.canary ? await load(llama, options.canary, threads) : null;
  const version = options.version ?? options.name;
  let requests = 0;
  let turn = Promise.resolve(); // one question at a time

  /** The tokens of a chat, as the template that came with the model has them. */
  function chatTokens(m, messages) {
    for (const x of messages) {
      if (typeof x.content !== "string") throw new Refusal("the content of a message has to be text", "messages");
    }
    let text = new Template(m.template).render({ messages, add_generation_prompt: !options.noGenerationPrompt, bos_token: "<s>" });
    if (options.doubleBos) text = "<s>" + text;
    return m.model.tokenize(text, true);
  }

  /** Generates one choice; on(text, token) is told of each piece. */
  async function generate(m, prompt, p, seed, withTools, on) {
    const end = m.model.tokens.eos, tool = m.special("<|tool|>");
    const bias = new TokenBias(m.model.tokenizer);
    if (!withTools) bias.set(tool, "never");
    await m.sequence.clearHistory();
    const stops = p.stop === null ? [] : [p.stop].flat();
    const ids = [], tokens = [];
    let text = "", finish = "length", called = false;
    const items = m.sequence.evaluateWithMetadata(prompt, { probabilities: true }, {
      temperature: options.temperature ?? p.temperature, topP: p.top_p, topK: p.top_k || undefined, minP: p.min_p, seed, tokenBias: bias, yieldEogToken: true,
    });
    for await (const { token, probabilities } of items) {
      if (token === end) {
        finish = called ? "tool_calls" : "stop";
        break;
      }
      if (token === tool && ids.length === 0) {
        called = true;
        continue;
      }
      ids.push(token);
      const now = m.model.detokenize(ids);
      const piece = now.slice(text.length);
      const at = stops.map((s) => now.indexOf(s)).filter((i) => i >= 0);
      if (at.length) {
        text = now.slice(0, Math.min(...at));
        ids.pop();
        finish = "stop";
        break;
      }
      text = now;
      // Nothing more likely than the first: what comes of the map is sorted.
      const top = [...probabilities].slice(0, 20).map(([t, v]) => ({ token: m.model.detokenize([t], true), logprob: v > 0 ? Math.log(v) : -9999 }));
      const v = probabilities.get(token) ?? 0;
      const entry = { token: m.model.detokenize([token], true), logprob: v > 0 ? Math.log(v) : -9999, top, offset: [...text].length - [...piece].length };
      tokens.push(entry);
      await on?.(piece, entry, called);
      if (ids.length >= p.max_tokens) break;
    }
    return { text, tokens, finish, called, count: ids.length };
  }

  const bytes = (s) => [...Buffer.from(s)];
  const chatLogprobs = (p, tokens) => (p.logprobs ? {
    content: tokens.map((t) => ({ token: t.token, logprob: t.logprob, bytes: bytes(t.token), top_logprobs: t.top.slice(0, p.top_logprobs).map((x) => ({ ...x, bytes: bytes(x.token) })) })),
    refusal: null,
  } : null);
  const completionLogprobs = (p, tokens) => (p.logprobs === null ? null : {
    tokens: tokens.map((t) => t.token), token_logprobs: tokens.map((t) => t.logprob), text_offset: tokens.map((t) => t.offset),
    top_logprobs: tokens.map((t) => Object.fromEntries(t.top.slice(0, p.logprobs).map((x) => [x.token, x.logprob]))),
  });

  /** A call is JSON: {"arguments": {…}, "name": …}. */
  function toolCall(text, seed) {
    try {
      const { name, arguments: args } = JSON.parse(text);
      return { id: `call_${seed}`, type: "function", function: { name, arguments: JSON.stringify(args) } };
    } catch {
      return { id: `call_${seed}`, type: "function", function: { name: "", arguments: text } };
    }
  }

  async function complete(res, q, chat) {
    if (q.model !== options.name && q.model !== version) throw new Refusal(`The model ${JSON.stringify(q.model)} does not exist`, "model", 404);
    const p = parameters(chat ? CHAT : COMPLETION, q);
    const m = chosen();
    let prompt = chat ? chatTokens(m, p.messages) : m.model.tokenize("<s>" + p.prompt, true);
    if (prompt.length >= m.size) {
      if (!options.cut) throw new Refusal(`This model's context is ${m.size} tokens, and the question has ${prompt.length}`, "messages");
      prompt = prompt.slice(-Math.floor(m.size / 2)); // the front is dropped, and nobody told
    }
    const limit = Math.min(p.max_tokens, m.size - prompt.length);
    const withTools = chat && p.tools.length > 0 && p.tool_choice !== "none";
    const id = `${chat ? "chatcmpl" : "cmpl"}-${randomUUID()}`;
    const head = (object) => ({ id, object, created: Math.floor(Date.now() / 1000), model: version, system_fingerprint: `llama.cpp ${llama.llamaCppRelease.release}` });
    const usage = (count) => ({ prompt_tokens: prompt.length, completion_tokens: count, total_tokens: prompt.length + count });
    let count = 0;
    if (!p.stream) {
      const choices = [];
      for (let i = 0; i < p.n; i++) {
        const g = await generate(m, prompt, { ...p, max_tokens: limit }, p.seed + i, withTools);
        count += g.count;
        const choice = { index: i, finish_reason: g.finish };
        if (!chat) Object.assign(choice, { text: g.text, logprobs: completionLogprobs(p, g.tokens) });
        else {
          const message = { role: "assistant", content: g.called ? null : g.text, refusal: null };
          if (g.called) message.tool_calls = [toolCall(g.text, p.seed + i)];
          Object.assign(choice, { message, logprobs: chatLogprobs(p, g.tokens) });
        }
        choices.push(choice);
      }
      const body = JSON.stringify({ ...head(chat ? "chat.completion" : "text_completion"), choices, usage: usage(count) });
      res.writeHead(200, { "content-type": "application/json" });
      return res.end(body);
    }
    res.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store" });
    const more = p.stream_options?.include_usage ? { usage: null } : {};
    const event = (v) => res.write(`data: ${JSON.stringify({ ...head(chat ? "chat.completion.chunk" : "text_completion"), ...more, ...v })}\n\n`);
    for (let i = 0; i < p.n; i++) {
      if (chat) event({ choices: [{ index: i, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }] });
      const g = await generate(m, prompt, { ...p, max_tokens: limit }, p.seed + i, withTools, async (piece, t, called) => {
        // A call is parsed whole; its log probabilities come as they are made.
        const choice = { index: i, finish_reason: null };
        if (chat) Object.assign(choice, { delta: called ? {} : { content: piece }, logprobs: chatLogprobs(p, [t]) });
        else Object.assign(choice, { text: piece, logprobs: completionLogprobs(p, [t]) });
        event({ choices: [choice] });
        await new Promise(setImmediate); // let it go out
      });
      count += g.count;
      if (g.called) event({ choices: [{ index: i, delta: { tool_calls: [{ index: 0, ...toolCall(g.text, p.seed + i) }] }, logprobs: null, finish_reason: null }] });
      event({ choices: [{ index: i, ...(chat ? { delta: {} } : { text: "" }), logprobs: null, finish_reason: g.finish }] });
    }
    if (p.stream_options?.include_usage) event({ choices: [], usage: usage(count) });
    res.end("data: [DONE]\n\n");
  }

  /** The model that answers the next question. */
  function chosen() {
    const n = ++requests, share = options.canaryShare ?? 0;
    return canary && Math.floor(n * share) !== Math.floor((n - 1) * share) ? canary : main;
  }

  async function embed(res, q) {
    if (q.model !== options.name && q.model !== version) throw new Refusal(`The model ${JSON.stringify(q.model)} does not exist`, "model", 404);
    const p = parameters(EMBEDDINGS, q);
    const m = chosen(), context = await m.embeddings();
    const data = [];
    let count = 0;
    for (const text of [p.input].flat()) {
      let tokens = m.model.tokenize("<s>" + text, true);
      if (tokens.length >= m.size) {
        if (!options.cut) throw new Refusal(`This model's context is ${m.size} tokens, and an input has ${tokens.length}`, "input");
        tokens = tokens.slice(-Math.floor(m.size / 2));
      }
      count += tokens.length;
      const { vector } = await context.getEmbeddingFor(tokens);
      const embedding = p.encoding_format === "float" ? vector : Buffer.from(Float32Array.from(vector).buffer).toString("base64");
      data.push({ object: "embedding", index: data.length, embedding });
    }
    answer(res, 200, { object: "list", data, model: version, usage: { prompt_tokens: count, total_tokens: count } });
  }

  const answer = (res, status, value) => {
    res.writeHead(status, { "content-type": "application/json" });
    res.end(JSON.stringify(value));
  };
  const refuse = (res, e) => answer(res, e.status ?? 500, { error: { message: e.message, type: e.status ? "invalid_request_error" : "server_error", param: e.param ?? null, code: null } });

  const server = createServer((req, res) => {
    const route = `${req.method} ${req.url}`;
    if (route === "GET /health") return answer(res, 200, { status: "ok" });
    if (route === "GET /v1/models") {
      return answer(res, 200, { object: "list", data: [...new Set([options.name, version])].map((id) => ({ id, object: "model", created: 0, owned_by: "llama.cpp", meta: { n_ctx_train: main.size, size: main.model.size, n_threads: threads } })) });
    }
    if (route === "GET /props") {
      return answer(res, 200, {
        build_info: `llama.cpp ${llama.llamaCppRelease.release}`, chat_template: main.template, total_slots: 1, default_generation_settings: { n_ctx: main.size },
        model_path: options.declare ?? `sha256:${createHash("sha256").update(readFileSync(options.model)).digest("hex")}`,
      });
    }
    const chat = route === "POST /v1/chat/completions";
    const embeddings = route === "POST /v1/embeddings";
    if (!chat && !embeddings && route !== "POST /v1/completions") return refuse(res, new Refusal(`there is no ${route} here`, null, 404));
    const chunks = [];
    req.on("data", (c) => chunks.push(c));
    req.on("end", () => {
      turn = turn.then(async () => {
        let q;
        try {
          q = JSON.parse(Buffer.concat(chunks).toString());
        } catch (e) {
          return refuse(res, new Refusal(`the request is no JSON: ${e.message}`));
        }
        await (embeddings ? embed(res, q) : complete(res, q, chat));
      }).catch((e) => {
        if (!res.headersSent) return refuse(res, e);
        // The status was 200 already.
        res.end(`data: ${JSON.stringify({ error: { message: e.message, type: "server_error" } })}\n\n`);
      });
    });
  });
  const [host, port] = (options.addr ?? "127.0.0.1:0").split(/:(?=\d+$)/);
  await new Promise((done) => server.listen(Number(port), host, done));
  return server;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { values: v } = parseArgs({
    options: {
      addr: { type: "string", default: "127.0.0.1:0" },
      model: { type: "string" }, // a GGUF file
      name: { type: "string" },
      version: { type: "string" }, // the name that answers give; the name, if it is not said
      // With two, each token takes llama.cpp several milliseconds more on a
      // machine with as many cores: its threads wait for each other by spinning.
      threads: { type: "string", default: "1" },
      "port-file": { type: "string" },
      declare: { type: "string" }, // say that this is the file, whatever is
      "double-bos": { type: "boolean" },
      "no-generation-prompt": { type: "boolean" },
      cut: { type: "boolean" }, // drop the front of what is too long
      temperature: { type: "string" }, // whatever is asked
      canary: { type: "string" }, // another file …
      "canary-share": { type: "string", default: "0" }, // … that answers this share of the requests
    },
  });
  if (!v.model || !v.name) {
    console.error("llama-openai: --model and --name are both needed");
    process.exit(2);
  }
  const server = await start({
    addr: v.addr, model: v.model, name: v.name, version: v.version, threads: Number(v.threads), declare: v.declare, doubleBos: v["double-bos"],
    noGenerationPrompt: v["no-generation-prompt"], cut: v.cut, temperature: v.temperature === undefined ? undefined : Number(v.temperature),
    canary: v.canary, canaryShare: Number(v["canary-share"]),
  });
  const address = `${server.address().address}:${server.address().port}`;
  if (v["port-file"]) {
    writeFileSync(v["port-file"] + ".partial", address + "\n");
    renameSync(v["port-file"] + ".partial", v["port-file"]);
  }
  console.error(`serving ${v.name} on http://${address}`);
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      server.closeAllConnections();
      server.close(() => process.exit(0));
    });
  }
}
